# SPDX-License-Identifier: Apache-2.0
"""Decoder heads: features of several strides to one map, and its classifier."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipa_fast.models.config import ModelConfig
from pipa_fast.models.encoders import MiTEncoder, StreetsEncoder, conv_norm


def resize(x: Tensor, like: Tensor) -> Tensor:
    """Resize [B, C, h, w] to the height and width of `like`, bilinearly."""
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)


class LightHead(nn.Module):
    """Lateral 1x1 convolutions, summed at stride 4, and one 3x3 convolution."""

    def __init__(self, channels: tuple[int, ...], num_classes: int, width: int = 64) -> None:
        super().__init__()
        low, middle, high = channels
        self.low = nn.Conv2d(low, width, 2, 2)
        self.middle = nn.Conv2d(middle, width, 1)
        self.high = nn.Conv2d(high, width, 1)
        self.fuse = conv_norm(width, width)
        self.channels = width
        self.classifier = nn.Conv2d(width, num_classes, 1)

    def fused(self, features: tuple[Tensor, ...]) -> Tensor:
        """Return the fused map [B, C, h, w] at stride 4."""
        low, middle, high = features
        x = self.middle(middle)
        return F.relu(self.fuse(x + self.low(low) + resize(self.high(high), x)))

    def classify(self, fused: Tensor) -> Tensor:
        """Return logits [B, K, h, w] of a fused map."""
        return self.classifier(fused)


class ConvBNReLU(nn.Module):
    """Convolution, batch norm, ReLU, named as the published checkpoints name them."""

    def __init__(self, inputs: int, outputs: int, kernel: int, dilation: int = 1, groups: int = 1):
        super().__init__()
        padding = dilation * (kernel // 2)
        self.conv = nn.Conv2d(
            inputs, outputs, kernel, 1, padding, dilation=dilation, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, Cin, h, w] to [B, Cout, h, w]."""
        return F.relu(self.bn(self.conv(x)))


class SeparableConvBNReLU(nn.Module):
    """A depthwise 3x3 convolution, then a pointwise one."""

    def __init__(self, inputs: int, outputs: int, dilation: int) -> None:
        super().__init__()
        self.depthwise_conv = ConvBNReLU(inputs, inputs, 3, dilation, groups=inputs)
        self.pointwise_conv = ConvBNReLU(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, Cin, h, w] to [B, Cout, h, w]."""
        return self.pointwise_conv(self.depthwise_conv(x))


class Embed(nn.Module):
    """A linear layer over the channels of a map."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.proj = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, Cin, h, w] to [B, Cout, h, w]."""
        return self.proj(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, x.shape[2:])


class ASPPFusion(nn.Module):
    """Parallel convolutions of several dilations over the stacked stages, and a bottleneck."""

    def __init__(self, inputs: int, width: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.aspp_modules = nn.ModuleList(
            ConvBNReLU(inputs, width, 1) if d == 1 else SeparableConvBNReLU(inputs, width, d)
            for d in dilations
        )
        self.bottleneck = ConvBNReLU(len(dilations) * width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, Cin, h, w] to [B, width, h, w]."""
        return self.bottleneck(torch.cat([branch(x) for branch in self.aspp_modules], 1))


class DAFormerHead(nn.Module):
    """Context-aware fusion of all encoder stages (DAFormer, arXiv 2111.14887, section 3.2).

    Submodules carry the names of the published checkpoints (`decode_head.*`).
    """

    def __init__(
        self, channels: tuple[int, ...], num_classes: int, *, width: int = 256, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.embed_layers = nn.ModuleDict({str(i): Embed(c, width) for i, c in enumerate(channels)})
        self.fuse_layer = ASPPFusion(len(channels) * width, width, (1, 6, 12, 18))
        self.dropout = nn.Dropout2d(dropout)
        self.channels = width
        self.conv_seg = nn.Conv2d(width, num_classes, 1)

    def fused(self, features: tuple[Tensor, ...]) -> Tensor:
        """Return the fused map [B, C, h, w] at the first stage's stride."""
        embedded = [self.embed_layers[str(i)](x) for i, x in enumerate(features)]
        first = embedded[0]
        stacked = torch.cat([first, *(resize(x, first) for x in embedded[1:])], 1)
        return self.fuse_layer(stacked)

    def classify(self, fused: Tensor) -> Tensor:
        """Return logits [B, K, h, w] of a fused map."""
        return self.conv_seg(self.dropout(fused))


def build_head(
    config: ModelConfig, encoder: StreetsEncoder | MiTEncoder
) -> LightHead | DAFormerHead:
    """Return the head that a ModelConfig names.

    Raises:
        ValueError: the light head reads three stages, those of streets_s.
    """
    if config.head == "daformer":
        return DAFormerHead(encoder.channels, config.num_classes, dropout=config.dropout)
    if len(encoder.channels) != 3:
        raise ValueError(
            f"model.head must be 'daformer' for the encoder {config.encoder}; got 'light'"
        )
    return LightHead(encoder.channels, config.num_classes)
