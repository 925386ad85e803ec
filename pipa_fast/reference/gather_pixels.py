# SPDX-License-Identifier: Apache-2.0
"""Pixels of a feature map as unit rows."""

import torch.nn.functional as F
from torch import Tensor


def gather_pixels(features: Tensor, index: Tensor, normalize: bool = True) -> Tensor:
    """Return [N, D] of [B, D, H, W]: the whole map as rows, then a selection; -1 gives zeros."""
    rows = features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])
    rows = F.normalize(rows, dim=1) if normalize else rows
    return rows[index.clamp(min=0)] * (index >= 0)[:, None]
