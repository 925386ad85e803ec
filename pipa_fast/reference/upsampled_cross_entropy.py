# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy of upsampled logits: upsample, then compare."""

import torch.nn.functional as F
from torch import Tensor


def upsampled_cross_entropy(
    logits: Tensor,  # [B, K, h, w]
    labels: Tensor,  # [B, H, W] int64
    *,
    weights: Tensor | None = None,  # [B, H, W]
    ignore_index: int = 255,
    average: str = "valid",
) -> Tensor:
    """Return the loss [] in nats, the full-size logits stored on the way."""
    full = F.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False)
    loss = F.cross_entropy(full, labels, ignore_index=ignore_index, reduction="none")
    if weights is not None:
        loss = loss * weights
    count = (labels != ignore_index).sum() if average == "valid" else labels.numel()
    return loss.sum() / (count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1))
