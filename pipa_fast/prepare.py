# SPDX-License-Identifier: Apache-2.0
"""`python -m pipa_fast.prepare`: datasets on disk, as training wants them.

A published dataset is verified, its labels are written as train ids beside themselves, and its
classes are counted into `sample_class_stats.json` and `samples_with_class.json` (DAFormer's files);
`--check` only verifies.

`streets` in GTA5's layout holds the synthetic training scenes (`images/00001.png` and palette
PNGs of label ids in `labels/00001.png`); in Cityscapes' layout the real scenes of both splits
(`leftImg8bit/SPLIT/CITY/CITY_000000_000019_leftImg8bit.png` and `gtFine/..._labelIds.png`).
Pixels without a label are label id 0 (unlabelled) in both.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipa_fast.checks import require
from pipa_fast.data import preparation
from pipa_fast.data.datasets import LAYOUTS
from pipa_fast.data.files import write_whole
from pipa_fast.data.labels import CLASSES, GTA5_PALETTE, to_label_ids
from pipa_fast.data.own import OWN, own_layout
from pipa_fast.data.streets import SPLIT_SIZES, Split, Streets
from pipa_fast.program import CTRL_C, cores, make_parser

_OF_STREETS = ("gta5", "cityscapes")
_CITIES: dict[Split, tuple[str, ...]] = {
    "train": ("aachen", "bremen", "zurich"),
    "val": ("frankfurt", "munster"),
}


class Written(NamedTuple):
    """What prepare_streets did: files written, and files that were there already, identical."""

    written: int
    kept: int


def prepare_streets(
    layout: str, out: str | Path, *, count: int | None = None, overwrite: bool = False
) -> Written:
    """Write the first `count` scenes of every split (default: all) below `out`.

    A file that exists with the same content is kept, so an interrupted run goes on where it
    stopped; one with other content is a FileExistsError unless `overwrite`. Raises ValueError for
    an unknown layout, a count outside 1..400, or an `out` that is not a folder.
    """
    require(layout in _OF_STREETS, "layout", layout, f"one of {', '.join(_OF_STREETS)}")
    most = SPLIT_SIZES["train"]
    require(count is None or 1 <= count <= most, "count", count, f"from 1 to {most}")
    root = Path(out)
    require(not root.exists() or root.is_dir(), "out", str(out), "a folder, or not there yet")
    scenes = _gta5(count) if layout == "gta5" else _cityscapes(count)
    sizes = [SPLIT_SIZES["train"]] if layout == "gta5" else list(SPLIT_SIZES.values())
    total = sum(size if count is None else min(size, count) for size in sizes)
    written = kept = 0
    for files in _tracked(scenes, f"streets as {layout}", total):
        for path, image in files:
            if _write(root / path, image, overwrite):
                written += 1
            else:
                kept += 1
    return Written(written, kept)


def _tracked(items: Iterable[Any], name: str, total: int) -> Iterator[Any]:
    """Yield the items, with a bar that tells how many there were."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        yield from progress.track(items, total=total, description=name)


def _gta5(count: int | None) -> Iterator[list[tuple[str, Image.Image]]]:
    for index, sample in enumerate(islice(Streets("synthetic", "train"), count)):
        label = Image.fromarray(to_label_ids(sample.label))
        label.putpalette(GTA5_PALETTE.tobytes())  # which makes it a palette image
        name = f"{index + 1:05d}.png"
        yield [(f"images/{name}", Image.fromarray(sample.image)), (f"labels/{name}", label)]


def _cityscapes(count: int | None) -> Iterator[list[tuple[str, Image.Image]]]:
    for split, cities in _CITIES.items():
        for index, sample in enumerate(islice(Streets("real", split), count)):
            city = cities[index % len(cities)]
            stem = f"{split}/{city}/{city}_{index // len(cities):06d}_000019"
            label = Image.fromarray(to_label_ids(sample.label))
            yield [
                (f"leftImg8bit/{stem}_leftImg8bit.png", Image.fromarray(sample.image)),
                (f"gtFine/{stem}_gtFine_labelIds.png", label),
            ]


def _write(path: Path, image: Image.Image, overwrite: bool) -> bool:
    """Write one PNG under its name in one go; False where the same image is there already."""
    if path.exists() and not overwrite:
        if _same(path, image):
            return False
        raise FileExistsError(f"{path} exists with other content; pass --overwrite to replace it")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, partial(image.save, format="PNG"))
    return True


def _same(path: Path, image: Image.Image) -> bool:
    try:
        with Image.open(path) as there:
            if there.mode != image.mode or there.getpalette() != image.getpalette():
                return False
            return np.array_equal(np.asarray(there), np.asarray(image))
    except OSError:  # not an image, or a torn one
        return False


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    made = make_parser(
        "prepare",
        "Check a dataset on disk, convert its labels to train ids and count its classes, or write "
        "the embedded pair in a dataset's layout.",
        "cityscapes --root data/cityscapes --check",
    )
    datasets = made.add_subparsers(dest="dataset", required=True)
    streets = datasets.add_parser("streets", help="the embedded pair, in a real dataset's layout")
    streets.add_argument(
        "--layout", required=True, choices=_OF_STREETS, help="whose folders and encodings to write"
    )
    streets.add_argument("--out", required=True, help="folder to write below")
    streets.add_argument("--count", type=int, help="scenes per split (default: all)")
    streets.add_argument(
        "--overwrite",
        action="store_true",
        help="replace files with other content (default: stop there; identical ones are kept)",
    )
    for name, layout in LAYOUTS.items():
        counts = ", ".join(f"{count:,} {split}" for split, count in layout.splits.items() if count)
        text = f"{counts} images, in the published layout" if counts else "images of your own"
        dataset = datasets.add_parser(name, help=text)
        if layout is OWN:
            dataset.add_argument(
                "--classes",
                nargs="+",
                help="names of the classes that labels number from 0 (default: Cityscapes' 19)",
            )
        dataset.add_argument("--root", required=True, help="the dataset's folder")
        dataset.add_argument("--check", action="store_true", help="verify, and write nothing")
        dataset.add_argument(
            "--subset", action="store_true", help="accept other counts and sizes of images"
        )
        dataset.add_argument(
            "--jobs", type=int, default=cores(), help="processes (default: one a core)"
        )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    chosen = parser().parse_args(arguments)
    try:
        return _prepare(chosen) if chosen.dataset in LAYOUTS else _write_streets(chosen)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"stopped; {_kept(chosen)}", file=sys.stderr)
        return CTRL_C


def _kept(chosen: argparse.Namespace) -> str:
    """Tell what a run that was interrupted leaves, and what the same command makes of it."""
    if chosen.dataset not in LAYOUTS:
        does = "writes them anew" if chosen.overwrite else "goes on"
        return f"the files written below {chosen.out} are kept, and the same command {does}"
    journal = Path(chosen.root, preparation.JOURNAL)
    if chosen.check or not journal.is_file():
        return "nothing is kept, and the same command begins anew"
    return f"what was found sound is in {journal}, and the same command goes on"


def _write_streets(chosen: argparse.Namespace) -> int:
    out = chosen.out
    done = prepare_streets(chosen.layout, out, count=chosen.count, overwrite=chosen.overwrite)
    print(f"{out}: {done.written} files written, {done.kept} there already")
    return 0


def _prepare(chosen: argparse.Namespace) -> int:
    """Prepare a dataset on disk; return the exit status, 1 where something is wrong with it."""
    own = getattr(chosen, "classes", None)
    summary = preparation.prepare(
        LAYOUTS[chosen.dataset] if own is None else own_layout(own),
        chosen.root,
        check=chosen.check,
        subset=chosen.subset,
        jobs=chosen.jobs,
        progress=_tracked,
    )
    counts = ", ".join(f"{count:,} {split}" for split, count in summary.images.items())
    print(f"{chosen.root}: {counts} images; {summary.written:,} labels converted")
    if summary.resumed:
        print(f"{summary.resumed:,} images had been read before; --check reads all")
    if summary.bare:
        print("no training image has a label: they serve as data.target, not as data.source")
    if summary.absent:
        names = own or CLASSES
        print(f"no pixel is {', '.join(names[c] for c in summary.absent)} in the training labels")
    for path in summary.statistics:
        print(f"wrote {path}")
    for problem in summary.problems:
        print(problem, file=sys.stderr)
    if summary.problems:
        hint = "" if chosen.subset else "; --subset accepts other numbers and sizes of images"
        count = len(summary.problems)
        print(f"{count} problems; no statistics written{hint}", file=sys.stderr)
    return 1 if summary.problems else 0


if __name__ == "__main__":
    sys.exit(main())
