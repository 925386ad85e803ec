# SPDX-License-Identifier: Apache-2.0
"""Projection heads: features to the unit vectors that are contrasted."""

import torch.nn.functional as F
from torch import Tensor, nn

from pipa_fast.trace import trace_range


class ProjectionHead(nn.Module):
    """1x1 convolution, batch norm, ReLU, 1x1 convolution, unit length (PiPa, section 3.2).

    It sees features averaged over `pool` x `pool` cells.
    """

    def __init__(self, channels_in: int, dim: int, pool: int = 1) -> None:
        super().__init__()
        self.pool = pool
        self.layers = nn.Sequential(
            nn.Conv2d(channels_in, channels_in, 1, bias=False),
            nn.BatchNorm2d(channels_in),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels_in, dim, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Return float32 [B, dim, h / pool, w / pool] of features [B, C, h, w], of unit length."""
        # In half precision, squares of small features underflow and rows lose their unit length.
        with trace_range("projection", features):
            if self.pool > 1:
                features = F.avg_pool2d(features, self.pool)
            return F.normalize(self.layers(features).float(), dim=1)
