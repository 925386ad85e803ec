# SPDX-License-Identifier: Apache-2.0
"""Find the cells of two crops' feature maps that look at the same place of an image."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pipa_fast.checks import require
from pipa_fast.ops._checks import check_count, check_integer, check_rank, check_shape, is_count
from pipa_fast.ops._random import check_seed, position_hash, spread
from pipa_fast.trace import traced


@traced("op:overlap_pairs")
def overlap_pairs(
    boxes: Tensor,
    flips: Tensor,
    *,
    crop_size: int | tuple[int, int],
    stride: int,
    num_pairs: int,
    seed: int | Tensor,
) -> tuple[Tensor, Tensor]:
    """Draw pairs of matching cells from the overlaps of crops, without replacement.

    Where the overlaps hold more than `num_pairs` cells, images give pairs in proportion to their
    overlap's area, and within an image all cells are equally likely. Otherwise all are returned.

    Args:
        boxes: [B, 2, 4] integers, y0 x0 y1 x1 of both crops in image pixels. A box may be larger or
            smaller than the crop, which then was resized. Both boxes of an image have one size,
            and lie a whole number of cells apart, else no cells would match.
        flips: [B, 2] bool, which crops are mirrored left to right.
        crop_size: side, or height and width, of the crops [pixels]; a multiple of stride.
        stride: side of a feature cell in crop pixels.
        num_pairs: length of the outputs.
        seed: an int, or an int64 tensor [] or, one for each image, [B].

    Returns:
        index_a, index_b [num_pairs] int64 into the flattened [B, h, w] maps of the first and second
        crops, ordered by image; -1 where there is none.

    Raises:
        ValueError: a shape, dtype or number that does not fit; boxes whose cells cannot match (on
            CPU; elsewhere, and under torch.compile, an assertion on the device, which nobody waits
            for).
    """
    check_rank("boxes", boxes, "B 2 4")
    images = boxes.shape[0]
    check_shape("boxes", boxes, (images, 2, 4))
    check_integer("boxes", boxes)
    check_shape("flips", flips, (images, 2))
    require(flips.dtype == torch.bool, "flips", flips.dtype, "of dtype bool")
    require(flips.device == boxes.device, "flips", str(flips.device), f"on {boxes.device}")
    check_count("stride", stride, least=1)
    check_count("num_pairs", num_pairs)
    crop = tuple(crop_size) if isinstance(crop_size, Sequence) else (crop_size, crop_size)
    if len(crop) != 2 or not all(is_count(side, 1) and side % stride == 0 for side in crop):
        # Only now: torch.compile makes no text of a length that it leaves open.
        expected = f"one or two positive multiples of stride ({stride})"
        require(False, "crop_size", crop_size, expected)
    check_seed(seed, images)
    height, width, device = crop[0] // stride, crop[1] // stride, boxes.device
    if images == 0:
        empty = torch.full((num_pairs,), -1, dtype=torch.int64, device=device)
        return empty, empty.clone()
    shift = _cells_apart(boxes.to(torch.int64), (height, width))

    # In the image's order, cell (i, j) of the first crop is cell (i, j) - shift of the second.
    rows = torch.arange(height, device=device) - shift[:, :1]
    columns = torch.arange(width, device=device) - shift[:, 1:]
    rows, columns = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
    both = (rows[:, :, None] & columns[:, None, :]).flatten(1)

    # Shares of what is drawn: differences of a rounded running sum, so that they add up exactly.
    running = both.sum(1).cumsum(0)
    total = running[-1]
    until = running * total.clamp(max=num_pairs) // total.clamp(min=1)
    share = until - torch.cat((until.new_zeros(1), until[:-1]))
    chance = position_hash(seed, images, height * width, device).masked_fill(~both, 2**32)
    order = chance.argsort(dim=1, stable=True)  # cells outside the overlap come last

    image, place, real = spread(share, num_pairs)
    cell = order[image, place.clamp(max=height * width - 1)]
    moved = torch.stack((torch.zeros_like(shift), shift))[:, image]  # [view, num_pairs, (y, x)]
    y, x = cell // width - moved[:, :, 0], cell % width - moved[:, :, 1]
    x = torch.where(flips.T[:, image], width - 1 - x, x)
    index = torch.where(real, (image * height + y) * width + x, -1)
    return index[0], index[1]


def _cells_apart(boxes: Tensor, cells: tuple[int, int]) -> Tensor:
    """Return by how many cells [B, 2] the second crop lies below and right of the first."""
    size = boxes[:, :, 2:] - boxes[:, :, :2]  # [B, view, (y, x)] image pixels
    count = torch.stack([torch.full_like(size[:, 0, 0], n) for n in cells], dim=1)
    cell = (size[:, 0] // count).clamp(min=1)
    apart = boxes[:, 1, :2] - boxes[:, 0, :2]
    fits = (size[:, 0] == size[:, 1]) & (size[:, 0] == cell * count) & (apart % cell == 0)
    # Without the number of cells, which torch.compile may leave open, too.
    message = (
        "boxes must have one size per image, a whole number of pixels for each of the crop's "
        "cells, and lie a whole number of cells apart"
    )
    try:
        torch._assert_async(fits.all(), message)
    except RuntimeError as error:  # a CPU's, which is at once
        if message not in str(error):
            raise
        wrong = boxes[~fits.all(1)][0].tolist()
        raise ValueError(f"{message}; got {wrong} for {list(cells)} cells") from error
    return apart // cell
