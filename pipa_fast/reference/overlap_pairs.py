# SPDX-License-Identifier: Apache-2.0
"""Matching cells of two crops, one cell at a time."""

from torch import Tensor


def all_pairs(
    boxes: Tensor,  # [B, 2, 4] y0 x0 y1 x1
    flips: Tensor,  # [B, 2]
    *,
    crop_size: tuple[int, int],
    stride: int,
) -> list[list[tuple[int, int]]]:
    """Return for each image its pairs of cells of the flattened [B, h, w] maps."""
    height, width = crop_size[0] // stride, crop_size[1] // stride
    pairs = []
    for image, (both, flipped) in enumerate(zip(boxes.tolist(), flips.tolist(), strict=True)):
        seen = []  # per view: where a cell's top left corner lies in the image -> its number
        for (y0, x0, y1, x1), flip in zip(both, flipped, strict=True):
            cell_y, cell_x = (y1 - y0) // height, (x1 - x0) // width
            seen.append(
                {
                    (y0 + i * cell_y, x0 + (width - 1 - j if flip else j) * cell_x): (
                        (image * height + i) * width + j
                    )
                    for i in range(height)
                    for j in range(width)
                }
            )
        pairs.append([(cell, seen[1][at]) for at, cell in seen[0].items() if at in seen[1]])
    return pairs
