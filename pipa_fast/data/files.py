# SPDX-License-Identifier: Apache-2.0
"""Image and label files, read whole and checked: whatever is wrong with one names it."""

import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageFile

SUFFIXES = (".png", ".jpg", ".jpeg")
"""What the files of images that are looked for in a folder end with, in small or capitals."""

UNREADABLE = (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)
"""What Pillow raises for a file that is damaged, cut short, too large or no image."""

# How an image is turned upright, by its EXIF orientation. ImageOps.exif_transpose does the same and
# writes the EXIF anew besides, which fails where that is damaged.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def named_as_image(path: Path) -> bool:
    """Return whether a file of a folder is an image by its name.

    ._a.png is none: macOS keeps a.png's attributes there, in archives and on foreign disks.
    """
    return path.suffix.lower() in SUFFIXES and not path.name.startswith("._")


def read_image(path: Path, *, labelled: bool = False) -> np.ndarray:
    """Return an image upright, as RGB uint8 [H, W, 3]; grey, palette and CMYK are converted.

    Args:
        labelled: a label belongs to it, pixel by pixel. Then it must be stored upright: whether
            the label was made of the pixels as stored or as shown cannot be seen, and where the
            two are of one size, a wrong guess would go unnoticed.

    Raises:
        ValueError: the file is no image, is cut short, has more than 8 bits a channel, or is turned
            by its EXIF and labelled.
    """
    with _opened(path, "an image") as image:
        if image.mode[0] in "IF":  # 16 and 32 bits: converting would clip, not scale
            raise _WrongKind(f"mode {image.mode}, not 8 bits a channel; convert it, scaled")
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        turn = _TURNS.get(orientation)
        if labelled and turn is not None:
            raise _WrongKind(
                f"EXIF orientation {orientation}, and whether its label is turned too is not "
                "known; store both upright, without it"
            )
        upright = image if turn is None else image.transpose(turn)
        return np.array(upright if upright.mode == "RGB" else upright.convert("RGB"))


def read_ids(path: Path) -> np.ndarray:
    """Return a label file's ids [H, W] uint8.

    One channel of 8 bits, with a palette or without, or SYNTHIA's three channels of 16 bits, whose
    first one holds the ids.

    Raises:
        ValueError: the file is no image, is cut short, is of another kind, or is turned by EXIF.
    """
    with _opened(path, "a label") as image:
        if image.mode == "RGB" and image.tile and image.tile[0].args == "RGB;16B":
            # Pillow keeps the upper byte of such a channel. Read as if the lower one came last, it
            # keeps that: ids are below 256.
            image.tile = [image.tile[0]._replace(args="RGB;16L")]
            ids = np.array(image)[:, :, 0]
        elif image.mode in ("L", "P"):
            ids = np.array(image)
        else:
            raise _WrongKind(f"mode {image.mode}, not one channel of ids; store 8-bit ids")
        # only now: a PNG's EXIF may come last, so that Pillow reads the pixels to get there
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        if orientation in _TURNS:
            raise _WrongKind(f"EXIF orientation {orientation}; store it upright, without it")
        return ids


def read_palette(path: Path) -> np.ndarray | None:
    """Return the colours of a palette image, RGB uint8 [N, 3] by id; None where it has no palette.

    Its pixels are not read. Raises ValueError for a file that is no image.
    """
    with _opened(path, "a label") as image:
        colours = None if image.mode != "P" else image.palette
        if colours is None or colours.mode != "RGB":
            return None
        return np.frombuffer(bytes(colours.palette), np.uint8).reshape(-1, 3)


class _WrongKind(ValueError):
    """The file is sound and of no use; the message says what to do."""


@contextmanager
def _opened(path: Path, what: str) -> Iterator[ImageFile.ImageFile]:
    """Open an image; whatever is wrong with it becomes a ValueError that names the file."""
    try:
        with Image.open(path) as image:
            yield image
    except UNREADABLE as error:
        remedy = "" if isinstance(error, _WrongKind) else "; copy it anew from where it came"
        raise ValueError(f"{path} cannot be read as {what}: {error}{remedy}") from error


def write_whole(path: Path, save: Callable[[Path], object]) -> None:
    """Let `save` write a file that gets its name in one go: a reader finds all of it or none."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class Box(NamedTuple):
    """A rectangle of an image [pixels], y1 and x1 excluded."""

    y0: int
    x0: int
    y1: int
    x1: int

    def of(self, image: np.ndarray) -> np.ndarray:
        """Return the view of an image [H, W, ...] that the box holds."""
        return image[self.y0 : self.y1, self.x0 : self.x1]


def fitted(shape: tuple[int, ...], size: tuple[int, int] | None) -> tuple[int, int]:
    """Return what height and width an image of `shape` (H, W, ...) has once resized to `size`.

    Its proportions stay: it is made as large as its long side allows beside the longer of `size`,
    and its short side beside the shorter. So mmsegmentation resizes unless told otherwise, and with
    it DAFormer: GTA5's 1914 x 1052 become 1280 x 704, not 1280 x 720. None leaves the size.
    """
    if size is None:
        return shape[0], shape[1]
    factor = min(max(size) / max(shape[:2]), min(size) / min(shape[:2]))
    height, width = (max(1, int(side * factor + 0.5)) for side in shape[:2])
    return height, width


def resized_part(image: np.ndarray, size: tuple[int, int], box: Box) -> np.ndarray:
    """Return the `box` of an image [H, W, 3] uint8 resized to `size`: (height, width).

    Bilinear, with antialiasing. Only the box is computed, from all pixels around it that count, so
    that it is what the whole resized image shows there, but for rounding.
    """
    if image.shape[:2] == size:
        return box.of(image)
    # multiplied first, so that the image's own border stays exactly where it is
    y0, y1 = (y * image.shape[0] / size[0] for y in (box.y0, box.y1))
    x0, x1 = (x * image.shape[1] / size[1] for x in (box.x0, box.x1))
    shape = (box.x1 - box.x0, box.y1 - box.y0)
    resized = Image.fromarray(image).resize(shape, Image.Resampling.BILINEAR, box=(x0, y0, x1, y1))
    return np.asarray(resized)


def resize_label(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a label [H, W] uint8 to (height, width), taking the nearest pixel."""
    if label.shape == size:
        return label
    resized = Image.fromarray(label).resize((size[1], size[0]), Image.Resampling.NEAREST)
    return np.asarray(resized)
