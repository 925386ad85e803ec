# SPDX-License-Identifier: Apache-2.0
"""A batch that goes through the network in parts, with the whole batch's losses and gradients."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipa_fast.checks import require
from pipa_fast.models import Outputs, SegmentationNetwork


class InParts(nn.Module):
    """Runs a network on at most `size` images at a time, and computes each part again backwards.

    Gradients of parts that are only added up would not be the batch's: contrasts compare all of its
    pixels, and means are over all of its valid ones. Here the losses see the whole batch's outputs,
    and one part's activations live at a time, for another forward pass; random layers draw in both
    passes alike. What is reduced over ranks is reduced once.
    """

    def __init__(self, module: SegmentationNetwork, size: int) -> None:
        super().__init__()
        require(size > 0, "size", size, "a positive count of images")
        self.module, self.size = module, size

    def forward(self, images: Tensor, *, fused: Tensor | None = None, **how: Any) -> Outputs:
        """Return what the network returns for the images [B, 3, H, W] at once."""
        if len(images) <= self.size:
            return self.module(images, fused=fused, **how)
        maps = [None] * len(images) if fused is None else fused.split(self.size)
        parts = [
            self._part(part, fused=own, **how)
            for part, own in zip(images.split(self.size), maps, strict=False)
        ]
        return Outputs(*(_joined(values) for values in zip(*parts, strict=True)))

    def _part(self, images: Tensor, **how: Any) -> Outputs:
        if not torch.is_grad_enabled():
            return self.module(images, **how)
        made: Any = checkpoint(self.module, images, use_reentrant=False, **how)
        return made


def _joined(values: tuple[Any, ...]) -> Any:
    """Return the parts' maps as one; what is no map, as the window, is the same in each."""
    return torch.cat(values) if isinstance(values[0], Tensor) else values[0]
