# SPDX-License-Identifier: Apache-2.0
"""Decode heads: an encoder's feature maps to one fused map, and that to logits.

A head's `forward` returns the fused map [B, channels, h, w] at the stride of the finest feature
map, which the projection heads read too; `classify` turns it into logits.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipa_fast.models.config import ModelConfig
from pipa_fast.models.encoders import conv_norm


def _resize(x: Tensor, like: Tensor) -> Tensor:
    """Resize [B, C, h, w] bilinearly to the size of `like`."""
    if x.shape[2:] == like.shape[2:]:
        return x
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)


class LightHead(nn.Module):
    """Each map is brought to one width, the coarse ones are enlarged, and all are added.

    Without dropout, whose masks no two numbers of ranks would share.
    """

    channels: int = 48

    def __init__(self, channels_in: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(
            nn.Conv2d(c, self.channels, 1, bias=False) for c in channels_in
        )
        self.norm = nn.GroupNorm(8, self.channels)
        self.fuse = conv_norm(self.channels, self.channels)
        self.conv_seg = nn.Conv2d(self.channels, num_classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Fuse feature maps [B, C_i, h_i, w_i] into [B, channels, h_0, w_0]."""
        maps = [lateral(x) for lateral, x in zip(self.lateral, features, strict=True)]
        total = maps[0]
        for x in maps[1:]:
            total = total + _resize(x, total)
        return self.fuse(torch.relu(self.norm(total)))

    def classify(self, fused: Tensor) -> Tensor:
        """Return logits [B, K, h, w]."""
        return self.conv_seg(fused)


class ConvModule(nn.Module):
    """Convolution, batch norm and ReLU, with the parameter names of the published checkpoints."""

    def __init__(
        self, channels_in: int, channels: int, size: int, *, dilation: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            channels_in,
            channels,
            size,
            padding=dilation * (size // 2),
            dilation=dilation,
            groups=groups,
            bias=False,
        )
        self.bn = nn.BatchNorm2d(channels)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, channels, h, w]."""
        return torch.relu(self.bn(self.conv(x)))


class SeparableConvModule(nn.Module):
    """A dilated convolution of each channel by itself, then one across channels."""

    def __init__(self, channels_in: int, channels: int, *, dilation: int) -> None:
        super().__init__()
        self.depthwise_conv = ConvModule(
            channels_in, channels_in, 3, dilation=dilation, groups=channels_in
        )
        self.pointwise_conv = ConvModule(channels_in, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, channels, h, w]."""
        return self.pointwise_conv(self.depthwise_conv(x))


class Embedding(nn.Module):
    """A linear map of every cell's features."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels_in, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, channels, h, w]."""
        return F.conv2d(x, self.proj.weight[:, :, None, None], self.proj.bias)


class SeparableAspp(nn.Module):
    """Context at several dilations, side by side, then fused (Chen et al., ECCV 2018)."""

    def __init__(self, channels_in: int, channels: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.aspp_modules = nn.ModuleList(
            ConvModule(channels_in, channels, 1)
            if dilation == 1
            else SeparableConvModule(channels_in, channels, dilation=dilation)
            for dilation in dilations
        )
        self.bottleneck = ConvModule(len(dilations) * channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, channels, h, w]."""
        return self.bottleneck(torch.cat([module(x) for module in self.aspp_modules], dim=1))


class DAFormerHead(nn.Module):
    """Context-aware fusion of all stages (Hoyer et al., CVPR 2022, section 3.2).

    Modules are named so that `decode_head.*` of a published checkpoint is this head's state dict.
    """

    channels: int = 256

    def __init__(
        self,
        channels_in: Sequence[int],
        num_classes: int,
        dropout: float,
        fusion: Literal["sepaspp", "conv"] = "sepaspp",
    ) -> None:
        super().__init__()
        self.embed_layers = nn.ModuleList(Embedding(c, self.channels) for c in channels_in)
        width = self.channels * len(channels_in)
        self.fuse_layer = (
            SeparableAspp(width, self.channels, (1, 6, 12, 18))
            if fusion == "sepaspp"
            else ConvModule(width, self.channels, 1)
        )
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = nn.Conv2d(self.channels, num_classes, 1)
        nn.init.normal_(self.conv_seg.weight, std=0.01)
        nn.init.zeros_(self.conv_seg.bias)  # type: ignore[arg-type]

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Fuse feature maps [B, C_i, h_i, w_i] into [B, 256, h_0, w_0]."""
        maps = [embed(x) for embed, x in zip(self.embed_layers, features, strict=True)]
        return self.fuse_layer(torch.cat([_resize(x, maps[0]) for x in maps], dim=1))

    def classify(self, fused: Tensor) -> Tensor:
        """Return logits [B, K, h, w]."""
        return self.conv_seg(self.dropout(fused))


def build_head(config: ModelConfig, channels_in: Sequence[int]) -> LightHead | DAFormerHead:
    """Return the head that `config` names, for feature maps of these widths."""
    if config.head == "light":
        return LightHead(channels_in, config.num_classes)
    return DAFormerHead(channels_in, config.num_classes, config.dropout)
