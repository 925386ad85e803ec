# SPDX-License-Identifier: Apache-2.0
"""The averaged network that labels target images."""

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from pipa_fast.models import SegmentationNetwork


def momentum(iteration: int, ceiling: float) -> float:
    """Return the momentum after `iteration` steps: min(1 - 1/(iteration + 1), ceiling)."""
    return min(1 - 1 / (iteration + 1), ceiling)


class Teacher(nn.Module):
    """Exponential moving average of the student's segmentation network, in float32.

    Follows DAFormer's `dacs.py`: parameters are averaged, batch-norm layers use the batch's own
    statistics, and dropout is off.
    """

    def __init__(self, student: SegmentationNetwork, *, ceiling: float = 0.999) -> None:
        super().__init__()
        self.network = student.export()
        self.network.requires_grad_(False)
        self.ceiling = ceiling
        self.train()

    def train(self, mode: bool = True) -> "Teacher":
        """Set the mode of batch-norm layers; dropout and stochastic depth stay off."""
        super().train(mode)
        for module in self.network.modules():
            if isinstance(module, _DropoutNd) or "DropPath" in type(module).__name__:
                module.training = False
        return self

    @torch.no_grad()
    def update(self, student: SegmentationNetwork, iteration: int) -> None:
        """Move towards `student` as the step after `iteration` finished steps would find it."""
        mine = dict(self.network.named_parameters())
        theirs = dict(student.named_parameters())
        keys = list(mine)
        weight = 1 - momentum(iteration, self.ceiling)
        torch._foreach_lerp_([mine[k] for k in keys], [theirs[k] for k in keys], weight)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, K, h, w] at the network's stride for images [B, 3, H, W] in [0, 1]."""
        return self.network(images).logits
