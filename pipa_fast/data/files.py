# SPDX-License-Identifier: Apache-2.0
"""Image and label files, read whole and checked: whatever is wrong with one names it."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps


def read_image(path: Path) -> np.ndarray:
    """Return an image upright, as RGB uint8 [H, W, 3].

    Raises:
        ValueError: the file is no image, is cut short, or has more than 8 bits a channel.
    """
    try:
        with Image.open(path) as image:
            if image.mode[0] in "IF":  # 16 and 32 bits: converting would clip, not scale
                raise ValueError(f"mode {image.mode}, not 8 bits a channel")
            ImageOps.exif_transpose(image, in_place=True)
            return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from error


def read_ids(path: Path) -> np.ndarray:
    """Return a label file's ids [H, W] uint8.

    One channel of 8 bits, with a palette or without, or SYNTHIA's three channels of 16 bits, whose
    first one holds the ids.

    Raises:
        ValueError: the file is no image, is cut short, or is of another kind.
    """
    try:
        with Image.open(path) as image:
            if image.mode in ("L", "P"):
                return np.array(image)
            if image.mode == "RGB" and image.tile and image.tile[0].args == "RGB;16B":
                # Pillow keeps the upper byte of such a channel. Read as if the lower one came
                # last, it keeps that: ids are below 256.
                image.tile = [image.tile[0]._replace(args="RGB;16L")]
                return np.array(image)[:, :, 0]
            raise ValueError(f"mode {image.mode}, not one channel of ids")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as a label: {error}") from error


def write_whole(path: Path, save: Callable[[Path], object]) -> None:
    """Let `save` write a file that gets its name in one go: a reader finds all of it or none."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        save(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def resize_image(
    image: np.ndarray,
    size: tuple[int, int] | None,
    box: tuple[int, int, int, int] | None = None,
) -> np.ndarray:
    """Resize an image [H, W, 3] uint8 to (height, width), bilinearly, with antialiasing.

    Only what `box` (y0, x0, y1, x1) of the resized image holds is computed and returned. It is
    what cutting afterwards gives, but for rounding: where a value lies between two levels, Pillow's
    float32 coordinates may choose the other one.
    """
    height, width = image.shape[:2]
    if size is None or (height, width) == size:
        return image if box is None else image[box[0] : box[2], box[1] : box[3]]
    y0, x0, y1, x1 = (0, 0, *size) if box is None else box
    # multiplied first, so that the image's own border stays exactly where it is
    top, bottom = y0 * height / size[0], y1 * height / size[0]
    left, right = x0 * width / size[1], x1 * width / size[1]
    resized = Image.fromarray(image).resize(
        (x1 - x0, y1 - y0), Image.Resampling.BILINEAR, box=(left, top, right, bottom)
    )
    return np.asarray(resized)


def resize_label(label: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """Resize a label [H, W] uint8 to (height, width), taking the nearest pixel."""
    if size is None or label.shape == size:
        return label
    resized = Image.fromarray(label).resize((size[1], size[0]), Image.Resampling.NEAREST)
    return np.asarray(resized)
