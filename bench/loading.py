# SPDX-License-Identifier: Apache-2.0
"""`python -m bench loading`: how fast a recipe's images are loaded, and where the time goes.

python -m bench loading --recipe gta2cs_daformer_pipa --workers 0 1 2
python -m bench loading --recipe gta2cs_hrda_pipa --step-ms 900 -- --data.source_root /data/gta5

A sample is a slot of a step: a source crop with its label, a target crop, and the pair of target
crops. What follows `--` changes settings of the recipe. Where its datasets are not on disk, streets
are written at the real images' size, about as large as real PNG files, and read from the page
cache. A core's rate is samples by processor time, of all processes together, so that neighbours on
the machine count little. `whole` is the lineage's way: all of an image is resized, then cut.
"""

import argparse
import contextlib
import copy
import dataclasses
import itertools
import math
import multiprocessing
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from kornia.filters import filter2d
from kornia.filters.kernels import get_gaussian_kernel2d
from PIL import Image
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from torch import Tensor

from bench.harness import Effort, interleave, timed
from bench.machine import device_name, machine
from bench.program import make_parser
from bench.rows import write
from pipa_fast.data import crops, files, loader
from pipa_fast.data.augmentation import STRONG, gaussian_blur
from pipa_fast.data.datasets import LAYOUTS, Dataset, build_dataset
from pipa_fast.data.folder import FolderDataset
from pipa_fast.data.labels import GTA5_PALETTE, to_label_ids
from pipa_fast.data.loader import TrainingSet, batches
from pipa_fast.data.preparation import prepare
from pipa_fast.data.streets import StyleName, render
from pipa_fast.training import distributed
from pipa_fast.training.config import Config, load, read_recipe

# Streets are drawn at a quarter of the size and enlarged, as a lens blurs; the noise then makes
# their PNG files as large as real ones, some 2 MB.
ENLARGED, NOISE = 4, 0.5
WRITTEN: dict[str, tuple[StyleName, str, str]] = {
    "gta5": ("synthetic", "images/{:05d}.png", "labels/{:05d}.png"),
    "cityscapes": (
        "real",
        "leftImg8bit/train/aachen/aachen_{:06d}_000019_leftImg8bit.png",
        "gtFine/train/aachen/aachen_{:06d}_000019_gtFine_labelIds.png",
    ),
}


def write_streets(name: str, root: Path, count: int, size: tuple[int, int] | None = None) -> None:
    """Write and prepare `count` streets of a layout below `root`, as large as its images or `size`.

    Raises:
        ValueError: a layout that is not written here.
    """
    if name not in WRITTEN:
        raise ValueError(
            f"{name} is not on disk, and only {' and '.join(WRITTEN)} are written here; name its "
            "folder after --, with --data.source_root or --data.target_root"
        )
    style, *paths = WRITTEN[name]
    height, width = size or (LAYOUTS[name].sizes or ((0, 0),))[0]
    for index in range(count):
        image, label = render(0, index, style, (height // ENLARGED, width // ENLARGED))
        enlarged = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
        noise = np.random.default_rng(index).normal(0, NOISE, (height, width, 3))
        noisy = np.clip(np.asarray(enlarged) + noise, 0, 255).round().astype(np.uint8)
        ids = Image.fromarray(to_label_ids(label))
        ids = ids.resize((width, height), Image.Resampling.NEAREST)
        if name == "gta5":
            ids.putpalette(GTA5_PALETTE.tobytes())
        for path, picture in zip(paths, (Image.fromarray(noisy), ids), strict=True):
            file = root / path.format(index + 1)
            file.parent.mkdir(parents=True, exist_ok=True)
            picture.save(file)
    prepare(LAYOUTS[name], root, subset=True)


def training_set(config: Config, folder: Path, count: int) -> tuple[TrainingSet, dict[str, Any]]:
    """Build a recipe's training set, below `folder` where it is not on disk, and describe it."""
    data, about = config.data, {}
    for side in ("source", "target"):
        root = getattr(data, f"{side}_root")
        about[f"{side}_written"] = root is not None and not Path(root).is_dir()
        if about[f"{side}_written"]:
            setattr(data, f"{side}_root", str(folder / side))
            write_streets(getattr(data, side), folder / side, count)
    source = build_dataset(data.source, "train", data.source_root)
    target = build_dataset(data.target, "train", data.target_root, labelled=False)
    for side, images in (("source", source), ("target", target)):
        about[f"{side}_images"] = len(images)
        about[f"{side}_file_bytes"] = _file_bytes(images)
    with_crops = config.adaptation.patch.weight > 0
    return TrainingSet(source, target, data, seed=config.seed, with_crops=with_crops), about


def _file_bytes(images: Dataset) -> int:
    """Return the mean size of the first image files; 0 of those drawn in memory."""
    if not isinstance(images, FolderDataset):
        return 0
    return round(statistics.mean(pair.image.stat().st_size for pair in images.pairs[:100]))


@contextlib.contextmanager
def whole() -> Iterator[None]:
    """Resize all of an image, once for both crops of a pair, then cut it."""
    last: tuple[Any, Any, Any] = (None, None, None)

    def resize_then_cut(image: np.ndarray, size: tuple[int, int], box: files.Box) -> np.ndarray:
        nonlocal last
        if last[0] is not image or last[1] != size:
            last = (image, size, files.resized_part(image, size, files.Box(0, 0, *size)))
        return box.of(last[2])

    with (
        mock.patch.object(loader, "resized_part", resize_then_cut),
        mock.patch.object(crops, "resized_part", resize_then_cut),
    ):
        yield


WAYS: dict[str, Callable[[], contextlib.AbstractContextManager]] = {
    "ours": contextlib.nullcontext,
    "whole": whole,
}


def rate(samples: TrainingSet, workers: int, steps: int) -> dict[str, float]:
    """Return samples per second, and per second of a core, with so many workers."""
    samples = copy.copy(samples)
    samples.config = dataclasses.replace(samples.config, num_workers=workers)
    # Workers start and fill their queues before; they do not run out of work before the end.
    ahead = 1 + 2 * workers
    stream = batches(samples, iterations=steps + 2 * ahead)
    for _ in itertools.islice(stream, ahead):
        pass
    start, busy = time.perf_counter(), _core_seconds()
    for _ in itertools.islice(stream, steps):
        pass
    seconds, busy = time.perf_counter() - start, _core_seconds() - busy
    count = steps * samples.config.batch_size
    return {"samples_per_s": count / seconds, "samples_per_core_s": count / busy}


def _core_seconds() -> float:
    """Return the processor time of this process and its children [s]; Linux tells of those."""
    ticks = 0
    for child in multiprocessing.active_children():
        with contextlib.suppress(OSError):
            after_name = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(after_name[11]) + int(after_name[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def rates(samples: TrainingSet, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each way and number of workers, which take turns: medians of rounds."""
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    for _ in range(args.rounds):
        for workers in args.workers:
            for way in WAYS if args.whole else ("ours",):
                with WAYS[way]():
                    seen = rate(samples, workers, args.batches)
                found.setdefault((way, workers), []).append(seen)
    return [
        {"part": f"workers {workers}, {way}", "way": way, "workers": workers}
        | {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        for (way, workers), rows in found.items()
    ]


def stages(samples: TrainingSet, steps: int) -> list[dict[str, Any]]:
    """Return a row for each stage of a sample, loaded in this process."""
    places: list[tuple[str, Any, str]] = [
        ("read source image", samples.source, "image"),
        ("read source label", samples.source, "label"),
        ("resize label", loader, "resize_label"),
        ("choose source crop", loader, "source_box"),
        ("read target image", samples.target, "image"),
        ("resize to crops", loader, "resized_part"),
        ("crop pair", loader, "crop_pair"),
        ("collate", samples, "collate"),
        ("bytes to float32", loader, "unpacked"),
    ]
    samples.config.num_workers = 0
    seconds: defaultdict[str, float] = defaultdict(float)

    def watched(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = function(*args, **kwargs)
            seconds[name] += time.perf_counter() - start
            return result

        return call

    with contextlib.ExitStack() as patched:
        for name, owner, attribute in places:
            function = watched(name, getattr(owner, attribute))
            patched.enter_context(mock.patch.object(owner, attribute, function))
        stream = batches(samples, iterations=steps + 1)
        next(stream)
        seconds.clear()
        start = time.perf_counter()
        for _ in stream:
            pass
        everything = time.perf_counter() - start
    count = steps * samples.config.batch_size
    seconds["the rest"] = everything - sum(seconds.values())
    names = [name for name, *_ in places if name in seconds] + ["the rest"]
    rows = [{"part": n, "ms": 1e3 * seconds[n] / count} for n in names]
    rows = [row | {"share": row["ms"] * count / (1e3 * everything)} for row in rows]
    return [*rows, {"part": "a sample", "ms": 1e3 * everything / count, "share": 1.0}]


def blurs(
    size: tuple[int, int], batch: int, device: torch.device, rounds: int
) -> list[dict[str, Any]]:
    """Return a row for the blur of strong augmentation, and for dense kernels that do the same.

    One is as wide as ours, one as the lineage's: a tenth of the image's height (DAFormer's
    `gaussian_blur`), 103 for crops of 1024.
    """
    tenth = math.ceil(0.1 * size[0])
    images = torch.rand(batch, 3, *size, device=device)
    sigma = torch.linspace(*STRONG.sigma, batch, device=device)
    calls = {f"blur, separable {STRONG.taps}": partial(gaussian_blur, images, sigma, STRONG.taps)}
    for width in (STRONG.taps, tenth if tenth % 2 else tenth - 1):
        calls[f"blur, dense {width} x {width}"] = partial(dense_blur, images, sigma, width)
    timed_calls = {name: timed(call, device, "ms") for name, call in calls.items()}
    samples = interleave(timed_calls, Effort(seconds=0, warmup=0, repeats=rounds))
    where = {"device": device_name(device), "shape": [batch, 3, *size]}
    return [
        where | {"part": name, "ms": statistics.median(times["ms"]) / batch}
        for name, times in samples.items()
    ]


def dense_blur(images: Tensor, sigma: Tensor, width: int) -> Tensor:
    """Do what `gaussian_blur` does, with one kernel of width x width."""
    return filter2d(images, get_gaussian_kernel2d(width, sigma[:, None].expand(-1, 2)))


def table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    """Return the rows for people."""
    made = Table(title=title, title_justify="left", box=SIMPLE)
    for column in ("part", "samples/s", "per core", "ms", "share"):
        made.add_column(column, justify="left" if column == "part" else "right", no_wrap=True)
    for row in rows:
        cells = [
            f"{row[key]:{form}}" if key in row else ""
            for key, form in (
                ("samples_per_s", ".2f"),
                ("samples_per_core_s", ".2f"),
                ("ms", ".2f"),
                ("share", ".1%"),
            )
        ]
        made.add_row(row["part"], *cells)
    return made


def remarks(
    rows: Sequence[dict[str, Any]], about: dict[str, Any], batch: int, step_ms: float | None
) -> Iterator[str]:
    """Yield what the images were, and what a step of a given time takes."""
    for side in ("source", "target"):
        size, written = about[f"{side}_file_bytes"], about[f"{side}_written"]
        text = f"{side}: {about[f'{side}_images']} images"
        text += f", {size / 1e6:.2f} MB a file" if size else ", drawn in memory"
        yield text + (", written for this, in the page cache" if written else "")
    ours = [row for row in rows if row.get("way") == "ours"]
    slow = {row["workers"]: row for row in rows if row.get("way") == "whole"}
    for row in ours:
        if row["workers"] in slow:
            ratio = row["samples_per_core_s"] / slow[row["workers"]]["samples_per_core_s"]
            yield f"{row['part']}: {ratio:.2f} times the samples of `whole` a core"
    if step_ms is not None:
        needed = batch / step_ms * 1e3
        best = max(row["samples_per_core_s"] for row in ours)
        cores = f"{needed / best:.1f} of these cores"
        yield f"steps of {step_ms:g} ms take {needed:.2f} samples/s: {cores}"


def arguments() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = make_parser("bench loading", __doc__)
    add = parser.add_argument
    add("--recipe", default="gta2cs_daformer_pipa", help="recipe name or YAML file")
    add("--workers", type=int, nargs="+", default=[0, 1, 2], help="processes that load")
    add("--batches", type=int, default=10, help="that are timed, in each round")
    add("--rounds", type=int, default=3, help="in which ways and workers take turns")
    add("--images", type=int, default=8, help="written of a dataset that is not on disk")
    add(
        "--whole", action=argparse.BooleanOptionalAction, default=True, help="the lineage's way too"
    )
    add(
        "--blur", action=argparse.BooleanOptionalAction, default=True, help="the augmentation's too"
    )
    add("--threads", type=int, help="of the CPU, for tensors (default: torch's)")
    add("--step-ms", type=float, help="tell what a training step of this time needs")
    add("--json", type=Path, help="write the rows there, one JSON object a line")
    add("settings", nargs="*", help="settings of the recipe, after --")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = arguments()
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        try:
            config = load(read_recipe(args.recipe), args.settings)
            samples, about = training_set(config, Path(folder), args.images)
        except ValueError as error:
            parser.error(str(error))
        where, batch = machine(torch.device("cpu")), config.data.batch_size
        rows = rates(samples, args) + stages(samples, args.batches)
    if args.blur:
        device = distributed.start(config.device).device
        rows += blurs(config.data.crop, batch, device, args.rounds)
    console = Console()
    console.print(table(f"{args.recipe}: loading a sample, {where['device']}", rows))
    for line in remarks(rows, about, batch, args.step_ms):
        console.print(line, highlight=False)
    if args.json:
        rows = [where | {"op": "loading", "recipe": args.recipe} | about | row for row in rows]
        write(args.json, rows)


if __name__ == "__main__":
    main()
