# SPDX-License-Identifier: Apache-2.0
"""Projection heads: features to the unit vectors that are contrasted."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipa_fast.trace import trace_range


class ProjectionHead(nn.Module):
    """1x1 convolution, batch norm, ReLU, 1x1 convolution, unit length (PiPa, section 3.2).

    It sees the decode head's fused map, averaged over `pool` x `pool` cells, or, if `joined`, all
    of the encoder's maps at that size.
    """

    def __init__(self, channels_in: int, dim: int, *, pool: int = 1, joined: bool = False) -> None:
        super().__init__()
        self.pool, self.joined = pool, joined
        self.layers = nn.Sequential(
            nn.Conv2d(channels_in, channels_in, 1, bias=False),
            nn.BatchNorm2d(channels_in),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels_in, dim, 1),
        )

    def forward(self, fused: Tensor, stages: Sequence[Tensor] | None = None) -> Tensor:
        """Return the unit vectors of each cell.

        Args:
            fused: [B, C, h, w] the decode head's map.
            stages: [B, C_i, h_i, w_i] the encoder's maps; a `joined` head needs them.

        Returns:
            float32 [B, dim, h / pool, w / pool].
        """
        with trace_range("projection", fused):
            features = fused
            if self.joined:
                assert stages is not None, "the network hands them on"
                features = _join(stages, (fused.shape[2], fused.shape[3]))
            if self.pool > 1:
                features = F.avg_pool2d(features, self.pool)
            # In half precision, squares of small features underflow: rows lose their unit length.
            return F.normalize(self.layers(features).float(), dim=1)


def _join(stages: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Return maps [B, C_i, h_i, w_i], enlarged to `size` and joined: [B, sum of C_i, *size].

    Corners lie on corners, as in PiPa's `encoder_decoder.py`.
    """
    resized = [F.interpolate(x, size=size, mode="bilinear", align_corners=True) for x in stages]
    return torch.cat(resized, dim=1)
