# SPDX-License-Identifier: Apache-2.0
"""What every encoder and every decode head has, whichever it is."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Encoder(nn.Module):
    """Images to feature maps, finest first: widths `channels`, cells of `strides` [pixels]."""

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    checkpoint_activations: bool = False
    windowed: bool = False
    """Whether it looks at windows that lie differently in images of another size."""

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return features [B, C_i, H/s_i, W/s_i] of normalised images [B, 3, H, W]."""
        raise NotImplementedError

    def recompute_activations(self) -> None:
        """Keep only what enters each block, and compute the rest again in the backward pass."""
        self.checkpoint_activations = True

    def run_block(self, block: nn.Module, x: Tensor) -> Tensor:
        """Return block(x); while training, without keeping its activations if asked for."""
        if self.checkpoint_activations and self.training and torch.is_grad_enabled():
            return checkpoint(block, x, use_reentrant=False)
        return block(x)


class LibraryEncoder(Encoder):
    """An encoder whose layers are a `model` of transformers, which can recompute by itself."""

    model: Any

    def recompute_activations(self) -> None:
        """Keep only what enters each block, and compute the rest again in the backward pass."""
        older = self.model.gradient_checkpointing_enable  # its name before transformers 5.23
        getattr(self.model, "activation_checkpointing_enable", older)({"use_reentrant": False})


class Head(nn.Module):
    """An encoder's maps to one fused map, and that to logits.

    The fused map has `channels` channels and the cells of the encoder's map number `level`.
    `conv_seg` holds the parameters that only logits depend on.
    """

    channels: int
    level: int = 0
    conv_seg: nn.Module

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Fuse feature maps [B, C_i, h_i, w_i] into [B, channels, h, w]."""
        raise NotImplementedError

    def classify(self, fused: Tensor) -> Tensor:
        """Return logits [B, K, h, w] of a fused map [B, channels, h, w]."""
        return self.conv_seg(fused)
