# SPDX-License-Identifier: Apache-2.0
"""Anchors drawn class by class: an explicit loop over images and classes, for tests."""

import torch
from torch import Tensor


def group_sizes(
    labels: Tensor,  # [B, H, W] integers
    predictions: Tensor,  # [B, H, W] integers
    *,
    num_anchors: int,
    max_per_class: int,
    hard_fraction: float,
    ignore_index: int,
) -> dict[tuple[int, int, bool], int]:
    """Return how many anchors each (image, class, hard) gives; which ones is left to chance."""
    present = [
        (image, int(label))
        for image in range(labels.shape[0])
        for label in torch.unique(labels[image])
        if label != ignore_index
    ]
    sizes = {}
    for image, label in present:
        of_class = labels[image] == label
        hard = int((of_class & (predictions[image] != label)).sum())
        easy = int(of_class.sum()) - hard
        quota = min(num_anchors // len(present), max_per_class)
        from_hard = min(hard, int(quota * hard_fraction + 1e-6))
        from_easy = min(easy, quota - from_hard)
        sizes[image, label, True] = min(hard, quota - from_easy)
        sizes[image, label, False] = from_easy
    return sizes
