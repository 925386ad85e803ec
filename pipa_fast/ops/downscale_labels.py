# SPDX-License-Identifier: Apache-2.0
"""Label maps at the resolution of features: of each cell, the class that fills enough of it."""

import math

import torch
from torch import Tensor

from pipa_fast.checks import require
from pipa_fast.ops._checks import check_count, check_integer, check_label, check_rank, check_share
from pipa_fast.trace import traced


@traced("op:downscale_labels")
def downscale_labels(
    labels: Tensor,
    *,
    stride: int,
    num_classes: int,
    min_ratio: float = 0.75,
    ignore_index: int = 255,
) -> Tensor:
    """Return for each cell of stride x stride pixels the label of most of them, if enough have it.

    Pixels without a class count too: a cell is ignored where they are more than any class's, or
    where the most frequent class fills less than `min_ratio` of it. Of equally frequent classes
    the lowest is taken.

    Args:
        labels: [B, H, W] integers; H and W multiples of the stride. `ignore_index` and whatever is
            not in 0 .. num_classes - 1 stands for no class.
        stride: pixels of a cell's side, at least 1.
        num_classes: at least 1.
        min_ratio: share of a cell's pixels, in [0, 1].

    Returns:
        Labels [B, H / stride, W / stride] int64, `ignore_index` where a cell is ignored.

    Raises:
        ValueError: a shape, dtype or number that does not fit.

    Source: DAFormer (arXiv 2111.14887), section 3.3, the masks of its feature distance. There the
    labels are laid out as one plane for each class; here each cell counts its own.
    """
    check_rank("labels", labels, "B H W")
    check_integer("labels", labels)
    check_count("stride", stride, least=1)
    check_count("num_classes", num_classes, least=1)
    check_share("min_ratio", min_ratio)
    check_label("ignore_index", ignore_index)
    images, height, width = labels.shape
    if height % stride or width % stride:
        # Only now: torch.compile makes no text of a length that it leaves open.
        expected = f"of H and W that are multiples of {stride}"
        require(False, "labels", tuple(labels.shape), expected)
    rows, columns, pixels = height // stride, width // stride, stride * stride

    cells = labels.to(torch.int64).view(images, rows, stride, columns, stride)
    cells = cells.transpose(2, 3).reshape(-1, pixels)
    known = (cells >= 0) & (cells < num_classes) & (cells != ignore_index)
    kind = torch.where(known, cells, num_classes)
    counts = torch.zeros(len(cells), num_classes + 1, dtype=torch.int32, device=labels.device)
    counts = counts.scatter_add_(1, kind, torch.ones_like(kind, dtype=torch.int32))
    most, label = counts.max(dim=1)
    least = math.ceil(min_ratio * pixels - 1e-6)  # 0.55 · 100 is 55.000…01
    enough = (label < num_classes) & (most >= least)
    return torch.where(enough, label, ignore_index).view(images, rows, columns)
