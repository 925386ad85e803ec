# SPDX-License-Identifier: Apache-2.0
"""Segment images or a video with a trained run and paint the classes over them.

python -m pipa_fast.predict photos --run runs/streets_pipa --out painted --recursive --legend
python -m pipa_fast.predict drive.mp4 --run runs/streets_pipa --out frames
python -m pipa_fast.predict leftImg8bit/test --recursive --format cityscapes --run RUN --out results
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import nn

from pipa_fast.checks import is_below, require
from pipa_fast.data.files import fitted, resize_label
from pipa_fast.evaluation.command_line import (
    add_inference_arguments,
    add_weights_arguments,
    as_asked,
    device_of,
    run_command,
)
from pipa_fast.evaluation.inference import (
    SlidingWindow,
    evaluating,
    predict_logits,
    read_ahead,
    to_batch,
)
from pipa_fast.evaluation.panels import colorize, overlay, with_legend
from pipa_fast.evaluation.pictures import Picture, find_pictures, is_video, read_frames
from pipa_fast.evaluation.protocol import DTYPES, in_words, precision_on, protocol_of
from pipa_fast.evaluation.server import check_names, write_label_ids
from pipa_fast.program import make_parser, refuse_given

MAX_PIXELS = 2048 * 2048
"""Images of no more keep their logits at their own size."""


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    made = make_parser(
        "predict",
        "Segment images or a video's frames; write NAME_overlay.png for each.",
        "photos --run runs/streets_pipa --out painted --legend",
    )
    made.add_argument("source", type=Path, help="folder of images of any size, an image, a video")
    made.add_argument("--recursive", action="store_true", help="search the folder's folders too")
    made.add_argument(
        "--format",
        choices=("overlay", "cityscapes"),
        default="overlay",
        help="overlay (default); cityscapes: label ids alone, named and stored as the test server "
        "takes them",
    )
    add_weights_arguments(made)
    made.add_argument("--out", type=Path, required=True, help="folder to write to")
    made.add_argument(
        "--blend", type=float, default=0.5, help="share of the colours (default: 0.5)"
    )
    made.add_argument(
        "--side-by-side", action="store_true", help="image, overlay, classes in a row"
    )
    made.add_argument("--legend", action="store_true", help="classes and colours below")
    made.add_argument("--raw", action="store_true", help="also NAME_labels.png, 8-bit train ids")
    made.add_argument(
        "--max-side",
        type=int,
        help="larger images are reduced to this for the network alone [pixels] (default: that of "
        "the images which the run is evaluated on, if its recipe reduces them, else 2048)",
    )
    add_inference_arguments(made)
    return made


def segment(
    network: nn.Module,
    image: np.ndarray,  # [H, W, 3] uint8
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    max_side: int = 2048,
    window: SlidingWindow | None = None,
    flip: bool = False,
) -> np.ndarray:
    """Return train ids [H, W] uint8 of an image of any size.

    Images with a side above `max_side` [pixels] are reduced for the network. Its logits are
    enlarged again, as in an evaluation; above MAX_PIXELS, where they alone take gigabytes, its
    classes are. `dtype` is autocast's (None: no autocast).
    """
    height, width = image.shape[:2]
    limit = (max_side, max_side) if max(height, width) > max_side else None
    size = (height, width) if height * width <= MAX_PIXELS else fitted(image.shape, limit)
    kind = torch.device(device).type
    with evaluating(network), torch.autocast(kind, dtype=dtype, enabled=dtype is not None):
        logits = predict_logits(
            network,
            to_batch([image], device),
            size=size,
            image_size=limit,
            window=window,
            flip=flip,
        )
    return resize_label(logits.argmax(1)[0].to("cpu", torch.uint8).numpy(), (height, width))


def check_options(options: argparse.Namespace) -> None:
    """Raise a ValueError that names the first option out of range or out of place."""
    if not 0 <= options.blend <= 1:
        raise ValueError(f"--blend must be a share in [0, 1]; got {options.blend}")
    if options.max_side is not None and options.max_side < 1:
        raise ValueError(f"--max-side must be a positive size; got {options.max_side}")
    if options.format == "cityscapes":
        others = ("raw", "side_by_side", "legend", "blend")
        refuse_given(options, parser(), others, "--format cityscapes writes label ids alone")
        if is_video(options.source):
            raise ValueError(f"--format cityscapes needs images; got {str(options.source)!r}")
    source, out = options.source.resolve(), options.out.resolve()
    # label ids are written under the names of their images
    one = options.format == "cityscapes" and source.is_file()
    folder = source.parent if one else source
    if out == folder or (options.recursive and folder in out.parents):
        raise ValueError(
            f"--out must not be the folder of the images; got {str(options.out)!r}"
            + (", which is searched too" if out != folder else "")
        )


def paint(
    image: np.ndarray, labels: np.ndarray, names: Sequence[str], options: argparse.Namespace
) -> np.ndarray:
    """Return the picture to write [H', W', 3] uint8 of an image [H, W, 3] and its train ids."""
    painted = overlay(image, labels, blend=options.blend)
    if options.side_by_side:
        painted = np.concatenate((image, painted, colorize(labels)), axis=1)
    if options.legend:
        # all classes below a video's frames, so that every frame is of one size
        present = range(len(names)) if is_video(options.source) else np.unique(labels).tolist()
        painted = with_legend(painted, list(present), names)
    return painted


def write(
    name: str,
    image: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    options: argparse.Namespace,
) -> None:
    """Write what the options ask for of one picture.

    Raises:
        ValueError: a name that leads out of the folder to write to.
    """
    require(is_below(name), "name", name, f"of a file below {options.out}")
    path = options.out / f"{name}_overlay.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(paint(image, labels, names, options)).save(path)
    if options.raw:
        Image.fromarray(labels).save(options.out / f"{name}_labels.png")


def _read(picture: Picture) -> tuple[str, np.ndarray | ValueError]:
    """Return a picture's name and its pixels, or why it has none: that must not cost the others."""
    try:
        return picture.name, picture.read()
    except ValueError as error:
        return picture.name, error


def run(options: argparse.Namespace, console: Console) -> None:
    """Segment and write what the command line asks for.

    Raises:
        ValueError: a bad option; or, once all others are written, images that cannot be read.
    """
    from pipa_fast.training.checkpoint import find_weights, load_run

    check_options(options)
    video = is_video(options.source)
    pictures: Iterator[Picture] | list[Picture] = (
        read_frames(options.source)
        if video
        else find_pictures(options.source, recursive=options.recursive)
    )
    served = {}
    if options.format == "cityscapes":
        served = check_names([picture.name for picture in pictures], options.out)
    device = device_of(options.device)
    weights = find_weights(options.run, options.checkpoint, options.branch)
    network, config = load_run(options.run, weights)
    if served and config.data.classes is not None:
        raise ValueError("--format cityscapes needs a run on Cityscapes' classes; this has its own")
    seen_as = as_asked(options, config.evaluation)
    precision = precision_on(options.precision or config.precision, device)
    max_side = options.max_side or max(config.evaluation.size or (2048,))
    network.to(device)
    how = in_words(protocol_of(seen_as.view, precision), f"images of sides up to {max_side}")
    console.print(how, highlight=False, soft_wrap=True)
    options.out.mkdir(parents=True, exist_ok=True)
    unreadable: list[str] = []
    count = 0
    # A video's frames are decoded already, and those before a torn one are to be kept.
    seen = map(_read, pictures) if video else read_ahead(_read, pictures)
    total = None if isinstance(pictures, Iterator) else len(pictures)
    for name, image in track(seen, "segmenting", total, console=console, transient=True):
        if isinstance(image, ValueError):
            unreadable.append(str(image))
            continue
        labels = segment(
            network,
            image,
            device=device,
            dtype=DTYPES[precision],
            max_side=max_side,
            window=seen_as.window,
            flip=seen_as.flip,
        )
        if served:
            write_label_ids(served[name], labels)
        else:
            write(name, image, labels, config.class_names, options)
        count += 1
    what = "frames" if video else "images"
    did = "labelled" if served else "painted"
    total = count + len(unreadable)
    note = "" if video else _left_alone(options, total)
    console.print(f"{did} {count} {what} in {options.out}{note}", highlight=False, soft_wrap=True)
    if unreadable:
        raise ValueError("\n".join([f"{len(unreadable)} of {total} images:", *unreadable]))


def _left_alone(options: argparse.Namespace, taken: int) -> str:
    """Return a note on the other files of the folder, "" where there are none."""
    source: Path = options.source
    if not source.is_dir():
        return ""
    files = source.rglob("*") if options.recursive else source.iterdir()
    left = sum(1 for p in files if p.is_file()) - taken
    return f"; {left} other files of {source} are not PNG or JPEG" if left else ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the process's exit code. A bad one exits with 2."""
    return run_command(parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
