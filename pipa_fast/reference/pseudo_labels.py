# SPDX-License-Identifier: Apache-2.0
"""Pseudo labels of upsampled logits: upsample, softmax, maximum."""

import torch.nn.functional as F
from torch import Tensor


def pseudo_labels(
    logits: Tensor,  # [B, K, h, w]
    *,
    size: tuple[int, int],
    threshold: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return labels, confidence [B, H, W] and the confident share [], as `ops.pseudo_labels`."""
    full = F.interpolate(logits, size, mode="bilinear", align_corners=False)
    confidence, labels = full.softmax(1).max(1)
    return labels, confidence, (confidence >= threshold).to(confidence.dtype).mean()
