# SPDX-License-Identifier: Apache-2.0
"""The heads whose outputs are contrasted; inference drops them."""

import torch.nn.functional as F
from torch import Tensor, nn


class Projection(nn.Module):
    """Convolution, batch norm, ReLU, convolution, then unit vectors (PiPa, section 3.2)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(inputs, inputs, 1),
            nn.BatchNorm2d(inputs),
            nn.ReLU(),
            nn.Conv2d(inputs, outputs, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, h, w] to unit vectors [B, D, h, w], normalised in float32."""
        y = self.layers(x)
        return F.normalize(y.float(), dim=1).to(y.dtype)
