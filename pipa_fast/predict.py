# SPDX-License-Identifier: Apache-2.0
"""Segment a folder of images with a trained run and paint the classes over them.

python -m pipa_fast.predict photos --run runs/streets_pipa --out painted
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import track
from torch import nn

from pipa_fast.evaluation.command_line import (
    add_inference_arguments,
    device_of,
    run_command,
    window_of,
)
from pipa_fast.evaluation.inference import SlidingWindow, evaluating, predict_logits, to_batch
from pipa_fast.evaluation.panels import colorize, overlay

SUFFIXES = (".png", ".jpg", ".jpeg")


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    made = argparse.ArgumentParser(
        prog="python -m pipa_fast.predict",
        description="Segment every PNG and JPEG of a folder; write NAME_overlay.png for each.",
    )
    made.add_argument("folder", type=Path, help="folder of images, of any size")
    made.add_argument("--run", type=Path, required=True, help="run folder: runs/streets_pipa")
    made.add_argument("--out", type=Path, required=True, help="folder to write to")
    made.add_argument(
        "--blend", type=float, default=0.5, help="share of the colours (default: 0.5)"
    )
    made.add_argument(
        "--side-by-side", action="store_true", help="image, overlay, classes in a row"
    )
    made.add_argument("--raw", action="store_true", help="also NAME_labels.png, 8-bit train ids")
    made.add_argument(
        "--max-side",
        type=int,
        default=2048,
        help="larger images are reduced to this for the network alone [pixels] (default: 2048)",
    )
    add_inference_arguments(made)
    return made


def find_images(folder: Path) -> list[Path]:
    """Return the folder's PNG and JPEG files by name.

    Raises:
        ValueError: no folder, no images in it, or two that would be written to one file.
    """
    if not folder.is_dir():
        raise ValueError(f"folder must be a directory of images; got {str(folder)!r}")
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
    if not paths:
        raise ValueError(f"folder must hold {', '.join(SUFFIXES)} files; {str(folder)!r} has none")
    stems: dict[str, Path] = {}
    for path in paths:
        if path.stem in stems:
            raise ValueError(
                f"{stems[path.stem].name} and {path.name} would share an output; rename one"
            )
        stems[path.stem] = path
    return paths


def read_image(path: Path) -> np.ndarray:
    """Return an image upright, as RGB uint8 [H, W, 3].

    Raises:
        ValueError: the file is no image, is cut short, or has more than 8 bits a channel.
    """
    try:
        with Image.open(path) as image:
            if image.mode[0] in "IF":  # 16 and 32 bits: converting would clip, not scale
                raise ValueError(f"mode {image.mode}, not 8 bits a channel")
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from error


def segment(
    network: nn.Module,
    image: np.ndarray,  # [H, W, 3] uint8
    *,
    device: torch.device | str = "cpu",
    max_side: int = 2048,
    window: SlidingWindow | None = None,
    flip: bool = False,
) -> np.ndarray:
    """Return train ids [H, W] uint8 of an image of any size.

    Images with a side above `max_side` [pixels] are reduced for the network, and the classes are
    enlarged again, since logits of a large photo alone take gigabytes.
    """
    height, width = image.shape[:2]
    scale = min(1.0, max_side / max(height, width))
    seen = image
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        seen = np.array(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    with evaluating(network):
        logits = predict_logits(network, to_batch([seen], device), window=window, flip=flip)
    labels = logits.argmax(1)[0]
    mapped = labels.to("cpu", torch.uint8).numpy()
    if scale < 1:
        enlarged = Image.fromarray(mapped).resize((width, height), Image.Resampling.NEAREST)
        mapped = np.asarray(enlarged)
    return mapped


def run(options: argparse.Namespace, console: Console) -> None:
    """Segment and paint what the command line asks for.

    Raises:
        ValueError: a bad option; or, once all others are painted, images that cannot be read.
    """
    from pipa_fast.training.checkpoint import load_run

    if not 0 <= options.blend <= 1:
        raise ValueError(f"--blend must be a share in [0, 1]; got {options.blend}")
    if options.max_side < 1:
        raise ValueError(f"--max-side must be a positive size; got {options.max_side}")
    paths = find_images(options.folder)
    if options.out.resolve() == options.folder.resolve():
        raise ValueError(f"--out must not be the folder of the images; got {str(options.out)!r}")
    window, device = window_of(options), device_of(options.device)
    network, _ = load_run(options.run)
    network.to(device)
    options.out.mkdir(parents=True, exist_ok=True)
    unreadable: list[str] = []
    for path in track(paths, "segmenting", console=console, transient=True):
        try:
            image = read_image(path)
        except ValueError as error:  # one bad file must not cost the others
            unreadable.append(str(error))
            continue
        labels = segment(
            network,
            image,
            device=device,
            max_side=options.max_side,
            window=window,
            flip=options.flip,
        )
        painted = overlay(image, labels, blend=options.blend)
        if options.side_by_side:
            painted = np.concatenate((image, painted, colorize(labels)), axis=1)
        Image.fromarray(painted).save(options.out / f"{path.stem}_overlay.png")
        if options.raw:
            Image.fromarray(labels).save(options.out / f"{path.stem}_labels.png")
    count = len(paths) - len(unreadable)
    left = sum(1 for p in options.folder.iterdir() if p.is_file()) - len(paths)
    note = f"; {left} other files of {options.folder} are not PNG or JPEG" if left else ""
    console.print(f"painted {count} images in {options.out}{note}", highlight=False, soft_wrap=True)
    if unreadable:
        raise ValueError("\n".join([f"{len(unreadable)} of {len(paths)} images:", *unreadable]))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the process's exit code. A bad one exits with 2."""
    return run_command(parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
