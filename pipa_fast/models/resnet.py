# SPDX-License-Identifier: Apache-2.0
"""ResNet-101 for segmentation: three 3x3 convolutions as stem, dilated at stride 8.

He et al., CVPR 2016, with the stem of Inception-v2 ("v1c"); layers 3 and 4 are dilated by 2 and 4
instead of strided (DeepLab, Chen et al., TPAMI 2018). Parameters are named as in mmsegmentation.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from pipa_fast.checks import require
from pipa_fast.models.interfaces import Encoder
from pipa_fast.models.published_names import bare_state, read_file

EXPANSION = 4
"""Output channels of a block for one channel of its middle convolution."""


def _conv(channels_in: int, channels: int, size: int, stride: int = 1, dilation: int = 1):
    """Return a convolution without bias that keeps the size, but for its stride."""
    made = nn.Conv2d(
        channels_in,
        channels,
        size,
        stride=stride,
        padding=dilation * (size // 2),
        dilation=dilation,
        bias=False,
    )
    nn.init.kaiming_normal_(made.weight, mode="fan_out", nonlinearity="relu")
    return made


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around which the input passes; the middle one strides."""

    def __init__(self, channels_in: int, width: int, *, stride: int, dilation: int) -> None:
        super().__init__()
        channels = EXPANSION * width
        self.conv1, self.bn1 = _conv(channels_in, width, 1), nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, stride, dilation)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = _conv(width, channels, 1), nn.BatchNorm2d(channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.downsample = nn.Sequential(
                _conv(channels_in, channels, 1, stride), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, 4 width, h / stride, w / stride]."""
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        return torch.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class ResNetEncoder(Encoder):
    """ResNet-101; its last two layers keep the second one's cells of 8 pixels."""

    channels: tuple[int, ...] = (256, 512, 1024, 2048)
    strides: tuple[int, ...] = (4, 8, 8, 8)

    def __init__(
        self, *, depths: Sequence[int] = (3, 4, 23, 3), weights: str | None = None
    ) -> None:
        super().__init__()
        stem: list[nn.Module] = []
        for before, channels, stride in ((3, 32, 2), (32, 32, 1), (32, 64, 1)):
            stem += [_conv(before, channels, 3, stride), nn.BatchNorm2d(channels), nn.ReLU()]
        self.stem = nn.Sequential(*stem)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        before, layers = 64, zip(depths, (1, 2, 1, 1), (1, 1, 2, 4), strict=True)
        for i, (depth, stride, dilation) in enumerate(layers):
            width, blocks = 64 * 2**i, []
            for j in range(depth):
                # The first block is dilated as the layer before was strided: half as much.
                spread = max(1, dilation // 2) if j == 0 else dilation
                blocks.append(
                    Bottleneck(before, width, stride=stride if j == 0 else 1, dilation=spread)
                )
                before = EXPANSION * width
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        if weights is not None:
            self._load(weights)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return features [B, C_i, H/s_i, W/s_i] of normalised images [B, 3, H, W]."""
        x, features = self.maxpool(self.stem(images)), []
        for i in range(1, 5):
            for block in self.get_submodule(f"layer{i}").children():
                x = self.run_block(block, x)
            features.append(x)
        return features

    def _load(self, weights: str) -> None:
        """Load a file of ImageNet weights with the names of mmsegmentation's resnet101_v1c."""
        path = Path(weights)
        require(path.is_file(), "model.weights", weights, "a file of resnet101_v1c weights")
        state = bare_state(read_file(path))
        kept = {key: value for key, value in state.items() if not key.startswith("fc.")}
        try:
            self.load_state_dict(kept)
        except RuntimeError as error:
            reason = str(error)[:400]
            raise ValueError(f"model.weights {weights!r} do not fit resnet101: {reason}") from error
