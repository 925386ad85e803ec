# SPDX-License-Identifier: Apache-2.0
"""Encoders: a small convolutional one for CPUs, and SegFormer's MiT-B0 … B5."""

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SegformerConfig, SegformerModel

from pipa_fast.models.config import ModelConfig

# hidden sizes and depths per stage (SegFormer, arXiv 2105.15203, table 6)
_MIT = {
    "mit_b0": ((32, 64, 160, 256), (2, 2, 2, 2)),
    "mit_b1": ((64, 128, 320, 512), (2, 2, 2, 2)),
    "mit_b2": ((64, 128, 320, 512), (3, 4, 6, 3)),
    "mit_b3": ((64, 128, 320, 512), (3, 4, 18, 3)),
    "mit_b4": ((64, 128, 320, 512), (3, 8, 27, 3)),
    "mit_b5": ((64, 128, 320, 512), (3, 6, 40, 3)),
}


def conv_norm(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Return a 3x3 convolution with group norm: each image by itself, on any number of ranks."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.GroupNorm(8, outputs)
    )


class Residual(nn.Module):
    """Two 3x3 convolutions around which the input passes unchanged."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = conv_norm(channels, channels)
        self.second = conv_norm(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, h, w] to the same shape."""
        return F.relu(x + self.second(F.relu(self.first(x))))


class StreetsEncoder(nn.Module):
    """A small residual network for the embedded streets pair, from scratch on a CPU."""

    channels = (24, 48, 96)
    strides = (2, 4, 8)

    def __init__(self) -> None:
        super().__init__()
        low, middle, high = self.channels
        self.stem = conv_norm(3, low, stride=2)
        self.down4 = conv_norm(low, middle, stride=2)
        self.block4 = Residual(middle)
        self.down8 = conv_norm(middle, high, stride=2)
        self.block8 = Residual(high)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return features [B, C, H/s, W/s] for the strides s of normalised images [B, 3, H, W]."""
        x2 = F.relu(self.stem(x))
        x4 = self.block4(F.relu(self.down4(x2)))
        x8 = self.block8(F.relu(self.down8(x4)))
        return x2, x4, x8


class MiTEncoder(nn.Module):
    """SegFormer's hierarchical transformer, from `transformers`."""

    strides = (4, 8, 16, 32)

    def __init__(self, name: str, *, drop_path: float, weights: str | None) -> None:
        super().__init__()
        self.channels, depths = _MIT[name]
        config = SegformerConfig(
            hidden_sizes=list(self.channels), depths=list(depths), drop_path_rate=drop_path
        )
        self.mit = SegformerModel(config)
        if weights is not None:
            self._load(weights, config)
        # As the lineage has it: 1e-6 in and after the blocks, 1e-5 in patch embeddings and in the
        # norm of reduced keys.
        for path, module in self.mit.named_modules():
            if isinstance(module, nn.LayerNorm):
                kept = "patch_embeddings" in path or "sequence_reduction" in path
                module.eps = 1e-5 if kept else 1e-6

    def _load(self, weights: str, config: SegformerConfig) -> None:
        """Load a folder or hub name; raise ValueError unless every parameter is in it."""
        try:
            loaded, report = SegformerModel.from_pretrained(
                weights, config=config, output_loading_info=True
            )
        except (OSError, RuntimeError) as error:
            where = "folder" if Path(weights).exists() else "hub name"
            raise ValueError(
                f"model.weights must be a SegFormer encoder of these sizes; {where} {weights!r}: "
                f"{error}"
            ) from error
        for kind in ("missing_keys", "mismatched_keys"):
            if report[kind]:
                raise ValueError(
                    f"model.weights {weights!r} does not fit: {kind} {sorted(report[kind])[:5]}"
                )
        self.mit = loaded

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return features [B, C, H/s, W/s] for the strides s of normalised images [B, 3, H, W]."""
        return tuple(self.mit(x, output_hidden_states=True).hidden_states)


def build_encoder(config: ModelConfig) -> StreetsEncoder | MiTEncoder:
    """Return the encoder that a ModelConfig names."""
    if config.encoder == "streets_s":
        return StreetsEncoder()
    return MiTEncoder(config.encoder, drop_path=config.drop_path, weights=config.weights)
