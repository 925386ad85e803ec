# SPDX-License-Identifier: Apache-2.0
"""The most frequent label of each cell: an explicit loop over cells and classes, for tests."""

import torch
from torch import Tensor


def downscale_labels(
    labels: Tensor,  # [B, H, W] integers
    *,
    stride: int,
    num_classes: int,
    min_ratio: float = 0.75,
    ignore_index: int = 255,
) -> Tensor:
    """Return labels [B, H / stride, W / stride] int64."""
    classes = [k for k in range(num_classes) if k != ignore_index]
    found = []
    for image in labels.cpu():
        for rows in image.split(stride, 0):
            for cell in rows.split(stride, 1):
                counts = {k: int((cell == k).sum()) for k in classes}
                label = max(counts, key=lambda k: counts[k])  # the first of equal ones
                nothing = cell.numel() - sum(counts.values())
                enough = counts[label] >= max(nothing, min_ratio * cell.numel() - 1e-6)
                found.append(label if enough else ignore_index)
    shape = labels.shape[0], labels.shape[1] // stride, labels.shape[2] // stride
    return torch.tensor(found, dtype=torch.int64, device=labels.device).view(shape)
