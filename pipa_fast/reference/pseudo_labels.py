# SPDX-License-Identifier: Apache-2.0
"""Pseudo labels of upsampled logits: upsample, softmax, maximum."""

import torch
import torch.nn.functional as F
from torch import Tensor


def forward(
    logits: Tensor,  # [B, K, h, w]
    height: int,
    width: int,
    threshold: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return labels, confidence [B, H, W] and the confident share [], as `ops.pseudo_labels`."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if len(wide) == 0:  # which F.interpolate refuses
        confidence = wide.new_empty(0, height, width)
        return confidence.to(torch.int64), confidence, confidence.sum()
    full = F.interpolate(wide, (height, width), mode="bilinear", align_corners=False)
    confidence, labels = full.softmax(1).max(1)
    return labels, confidence, (confidence >= threshold).to(confidence.dtype).mean()
