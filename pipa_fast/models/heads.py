# SPDX-License-Identifier: Apache-2.0
"""Decode heads: an encoder's feature maps to one fused map, and that to logits.

A head's `forward` returns the fused map [B, channels, h, w], which the projection heads read too,
at the stride of the finest feature map (DeepLabV2: of the last one); `classify` turns it into
logits.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipa_fast.models.config import ModelConfig
from pipa_fast.models.encoders import conv_norm
from pipa_fast.models.interfaces import Head


def _resize(x: Tensor, like: Tensor) -> Tensor:
    """Resize [B, C, h, w] bilinearly to the size of `like`."""
    if x.shape[2:] == like.shape[2:]:
        return x
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)


class LightHead(Head):
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


def _classifier(channels: int, num_classes: int) -> nn.Conv2d:
    """Return a 1x1 convolution whose logits start near 0."""
    made = nn.Conv2d(channels, num_classes, 1)
    nn.init.normal_(made.weight, std=0.01)
    nn.init.zeros_(made.bias)  # type: ignore[arg-type]
    return made


class DAFormerHead(Head):
    """Context-aware fusion of all stages (Hoyer et al., CVPR 2022, section 3.2).

    Modules are named so that `decode_head.*` of a published checkpoint is this head's state dict.
    Fusion "conv" is one 1x1 convolution in place of the dilated ones, as HRDA's scale attention has
    it (`decode_head.scale_attention.*`).
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
        self.conv_seg = _classifier(self.channels, num_classes)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Fuse feature maps [B, C_i, h_i, w_i] into [B, 256, h_0, w_0]."""
        maps = [embed(x) for embed, x in zip(self.embed_layers, features, strict=True)]
        return self.fuse_layer(torch.cat([_resize(x, maps[0]) for x in maps], dim=1))

    def classify(self, fused: Tensor) -> Tensor:
        """Return logits [B, K, h, w]."""
        return self.conv_seg(self.dropout(fused))


class SegFormerHead(Head):
    """A linear map of each stage and one across stages (Xie et al., NeurIPS 2021, section 3.2)."""

    def __init__(
        self, channels_in: Sequence[int], num_classes: int, dropout: float, channels: int
    ) -> None:
        super().__init__()
        self.channels = channels
        self.linear_c = nn.ModuleList(Embedding(c, channels) for c in channels_in)
        self.linear_fuse = ConvModule(channels * len(channels_in), channels, 1)
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = _classifier(channels, num_classes)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Fuse feature maps [B, C_i, h_i, w_i] into [B, channels, h_0, w_0]."""
        maps = [embed(x) for embed, x in zip(self.linear_c, features, strict=True)]
        # Deepest first: the published weights of `linear_fuse` expect that order.
        return self.linear_fuse(torch.cat([_resize(x, maps[0]) for x in maps[::-1]], dim=1))

    def classify(self, fused: Tensor) -> Tensor:
        """Return logits [B, K, h, w]."""
        return self.conv_seg(self.dropout(fused))


class DilatedConv(nn.Module):
    """A 3x3 convolution with bias, under the parameter names of mmsegmentation."""

    def __init__(self, channels_in: int, channels: int, dilation: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels, 3, padding=dilation, dilation=dilation)
        nn.init.normal_(self.conv.weight, std=0.01)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, channels, h, w]."""
        return self.conv(x)


class DilatedClassifier(nn.Module):
    """The sum of 3x3 convolutions at several dilations."""

    def __init__(self, channels: int, num_classes: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.aspp_modules = nn.ModuleList(
            DilatedConv(channels, num_classes, dilation) for dilation in dilations
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, K, h, w] of [B, C, h, w]."""
        total, *others = [module(x) for module in self.aspp_modules]
        for y in others:
            total = total + y
        return total


class DeepLabV2Head(Head):
    """Dilated convolutions on the encoder's last map (Chen et al., TPAMI 2018, section 3.2).

    They are the classifier itself, so there is no fused map of the head's own: it is the encoder's
    last one, and projection heads read that (2048 channels of a ResNet-101).
    """

    level = -1

    def __init__(
        self,
        channels_in: Sequence[int],
        num_classes: int,
        dilations: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.channels = channels_in[-1]
        self.conv_seg = DilatedClassifier(self.channels, num_classes, dilations or (6, 12, 18, 24))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return the last map [B, C, h, w]."""
        return features[-1]


def build_head(config: ModelConfig, channels_in: Sequence[int]) -> Head:
    """Return the head that `config` names, for feature maps of these widths."""
    if config.head == "light":
        return LightHead(channels_in, config.num_classes)
    if config.head == "deeplabv2":
        return DeepLabV2Head(channels_in, config.num_classes, config.dilations)
    if config.head == "segformer":
        small = config.encoder in ("mit_b0", "mit_b1")
        channels = config.head_channels or (256 if small else 768)
        return SegFormerHead(channels_in, config.num_classes, config.dropout, channels)
    return DAFormerHead(channels_in, config.num_classes, config.dropout)
