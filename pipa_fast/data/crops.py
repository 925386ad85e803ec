# SPDX-License-Identifier: Apache-2.0
"""Random crops: of a source image by what is in it, of a target image blindly, and in pairs."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from pipa_fast.checks import require
from pipa_fast.data.files import Box, resized_part
from pipa_fast.data.labels import count_pixels

TRIES = 11
"""Crops drawn for one that fits: the lineage looks at ten, then takes the next as it comes."""


def _check_fits(name: str, size: tuple[int, int], image: tuple[int, ...]) -> None:
    fits = 0 < size[0] <= image[0] and 0 < size[1] <= image[1]
    require(fits, name, size, f"positive and no larger than the image, {tuple(image[:2])}")


def random_box(
    image: tuple[int, ...], size: tuple[int, int], generator: np.random.Generator
) -> Box:
    """Return a box of `size` anywhere in an image of shape (H, W, ...).

    Raises:
        ValueError: the image is smaller.
    """
    _check_fits("crop", size, image)
    y = int(generator.integers(image[0] - size[0] + 1))
    x = int(generator.integers(image[1] - size[1] + 1))
    return Box(y, x, y + size[0], x + size[1])


def source_box(
    label: np.ndarray,
    size: tuple[int, int],
    generator: np.random.Generator,
    *,
    max_class_share: float = 1.0,
    wanted: int | None = None,
    min_pixels: float = 0.0,
) -> Box:
    """Return a box with variety in it and enough of one class; the last one tried if none fits.

    Each of up to TRIES boxes is the first of up to TRIES in which no class takes `max_class_share`
    of the labelled pixels or more (mmseg's `cat_max_ratio`; 1 accepts all), and fits where it has
    more than `min_pixels` of the class `wanted`. All are cut from one decoded label [H, W] uint8.
    """

    def varied(counts: np.ndarray) -> bool:
        return counts.max() < max_class_share * counts.sum()

    def shows(counts: np.ndarray) -> bool:
        return wanted is None or counts[wanted] > min_pixels

    def several() -> tuple[Box, np.ndarray]:
        return _first(label, size, generator, varied if max_class_share < 1 else None)

    box, counts = several()
    for _ in range(TRIES - 1):
        if shows(counts):
            break
        box, counts = several()
    return box


def _first(
    label: np.ndarray,
    size: tuple[int, int],
    generator: np.random.Generator,
    fits: Callable[[np.ndarray], bool] | None,
) -> tuple[Box, np.ndarray]:
    """Return the first of up to TRIES boxes that fits, or the last, and its pixels per class."""
    for _ in range(TRIES):
        box = random_box(label.shape, size, generator)
        counts = count_pixels(box.of(label))
        if fits is None or fits(counts):
            break
    return box, counts


class CropPair(NamedTuple):
    """Two overlapping crops of one image."""

    crops: np.ndarray  # [2, c, c', 3] as the image's dtype; mirrored where flips say so
    boxes: np.ndarray  # [2, 4] int64, y0 x0 y1 x1 in the (resized) image
    flips: np.ndarray  # [2] bool
    image: tuple[int, int]  # height and width of the (resized) image


def iou_of_offsets(dy: np.ndarray, dx: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the intersection over union of two boxes of one size, dy and dx [pixels] apart."""
    high, wide = (np.maximum(s - abs(d), 0) for s, d in zip(size, (dy, dx), strict=True))
    shared = high * wide
    return shared / (2 * size[0] * size[1] - shared)


def overlapping_boxes(
    image: tuple[int, ...],
    size: tuple[int, int],
    generator: np.random.Generator,
    *,
    stride: int,
    overlap: tuple[float, float],
) -> tuple[Box, Box]:
    """Return two boxes of `size` whose corners are multiples of `stride`.

    The first lies anywhere; the second is one of those, all equally likely, whose intersection
    over union with it is in `overlap`.

    Raises:
        ValueError: the image is smaller than a crop, or holds no box with such an overlap.
    """
    _check_fits("patch_crop", size, image)
    ys = np.arange(0, image[0] - size[0] + 1, stride)
    xs = np.arange(0, image[1] - size[1] + 1, stride)
    y, x = int(ys[generator.integers(len(ys))]), int(xs[generator.integers(len(xs))])
    iou = iou_of_offsets((ys - y)[:, None], (xs - x)[None, :], size)
    allowed = np.flatnonzero((iou >= overlap[0]) & (iou <= overlap[1]))
    if not len(allowed):
        raise ValueError(
            f"patch_overlap must be reached by two crops of {size} in an image of "
            f"{tuple(image[:2])} on a grid of {stride}; got {overlap}"
        )
    row, column = divmod(int(allowed[generator.integers(len(allowed))]), len(xs))
    y2, x2 = int(ys[row]), int(xs[column])
    return Box(y, x, y + size[0], x + size[1]), Box(y2, x2, y2 + size[0], x2 + size[1])


def crop_pair(
    image: np.ndarray,
    size: tuple[int, int],
    generator: np.random.Generator,
    *,
    stride: int,
    overlap: tuple[float, float] = (0.1, 1.0),
    scale: tuple[float, float] = (1.0, 1.0),
) -> CropPair:
    """Cut two overlapping crops of `size` from an image [H, W, 3], each perhaps mirrored.

    Both crops and the boxes are of the image resized by a factor drawn from `scale`, but never
    below the crop's size; only the crops of it are computed.
    """
    factor = float(generator.uniform(*scale))
    shape = (image.shape[0], image.shape[1])
    if factor != 1.0:
        shape = tuple(max(round(s * factor), a) for s, a in zip(shape, size, strict=True))
    boxes = overlapping_boxes(shape, size, generator, stride=stride, overlap=overlap)
    flips = generator.random(2) < 0.5
    crops = [resized_part(image, shape, box) for box in boxes]
    crops = [np.flip(c, 1) if flip else c for c, flip in zip(crops, flips, strict=True)]
    return CropPair(np.stack(crops), np.array(boxes, np.int64), flips, shape)
