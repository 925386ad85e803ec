# SPDX-License-Identifier: Apache-2.0
"""Encoders: images to feature maps, finest first."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pipa_fast.checks import require
from pipa_fast.models.backbones import BACKBONES, BackboneEncoder, ConvNextEncoder
from pipa_fast.models.config import ModelConfig
from pipa_fast.models.interfaces import Encoder, LibraryEncoder
from pipa_fast.models.published_names import bare_state, check_complete, read_file, rename_mit
from pipa_fast.models.resnet import ResNetEncoder


def conv_norm(channels_in: int, channels: int, *, stride: int = 1) -> nn.Sequential:
    """Return 3x3 convolution, group norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False),
        nn.GroupNorm(8, channels),
        nn.ReLU(inplace=True),
    )


class Residual(nn.Module):
    """Two 3x3 convolutions around which the input passes (He et al., CVPR 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = conv_norm(channels, channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(8, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, C, h, w] of the same shape."""
        return torch.relu(x + self.norm(self.second(self.first(x))))


class StreetsEncoder(Encoder):
    """A small residual network for CPUs.

    Group norm instead of batch norm: its outputs depend on no other image, so ranks need no
    common statistics.
    """

    channels: tuple[int, ...] = (32, 64, 96)
    strides: tuple[int, ...] = (4, 8, 16)

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 16, stride=2)
        stages, before = [], 16
        for channels in self.channels:
            stages.append(nn.Sequential(conv_norm(before, channels, stride=2), Residual(channels)))
            before = channels
        self.stages = nn.ModuleList(stages)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return features [B, C_i, H/s_i, W/s_i] of normalised images [B, 3, H, W]."""
        x, features = self.stem(images), []
        for stage in self.stages:
            x = self.run_block(stage, x)
            features.append(x)
        return features


class MitSize(NamedTuple):
    """What tells the Mix Transformers apart (SegFormer, arXiv 2105.15203, table 6)."""

    hidden_sizes: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]


MIT_SIZES: dict[str, MitSize] = {
    "mit_b0": MitSize((32, 64, 160, 256), (2, 2, 2, 2)),
    "mit_b1": MitSize((64, 128, 320, 512), (2, 2, 2, 2)),
    "mit_b2": MitSize((64, 128, 320, 512), (3, 4, 6, 3)),
    "mit_b3": MitSize((64, 128, 320, 512), (3, 4, 18, 3)),
    "mit_b4": MitSize((64, 128, 320, 512), (3, 8, 27, 3)),
    "mit_b5": MitSize((64, 128, 320, 512), (3, 6, 40, 3)),
}


class MitEncoder(LibraryEncoder):
    """Mix Transformer of SegFormer (Xie et al., NeurIPS 2021), as transformers implements it."""

    strides: tuple[int, ...] = (4, 8, 16, 32)

    def __init__(self, name: str, *, weights: str | None = None, drop_path: float = 0.1) -> None:
        super().__init__()
        size = MIT_SIZES[name]
        self.channels: tuple[int, ...] = size.hidden_sizes
        self.model = _segformer(name, size, weights, drop_path)
        # The published weights were trained with 1e-5 in two kinds of layers and 1e-6 in the
        # others; transformers has one for all.
        for path, module in self.model.named_modules():
            if isinstance(module, nn.LayerNorm):
                coarse = "patch_embeddings" in path or "sequence_reduction" in path
                module.eps = 1e-5 if coarse else 1e-6

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return features [B, C_i, H/s_i, W/s_i] of normalised images [B, 3, H, W]."""
        x, features = images, []
        # Stage by stage: the model's own forward collects features through hooks.
        for stage in self.model.stages:
            x = stage(x)
            features.append(x)
        return features


def _segformer(name: str, size: MitSize, weights: str | None, drop_path: float) -> Any:
    """Return transformers' SegformerModel in training mode, float32.

    Raises:
        ValueError: the weights cannot be found, are of another network, or not all there.
    """
    from transformers import SegformerConfig, SegformerModel  # takes seconds; only for who needs it

    config = SegformerConfig(
        hidden_sizes=size.hidden_sizes, depths=size.depths, drop_path_rate=drop_path
    )
    if weights is None:
        return SegformerModel(config).train()
    if Path(weights).is_file():
        return _load_file(name, SegformerModel(config), Path(weights)).train()
    # A mistyped path would be looked for on the hub, half a minute long where there is no network.
    require(not weights.endswith(".pth"), "model.weights", weights, "a file that is there")
    expected = "a folder that transformers saved or a name on its hub"
    try:
        stored, _ = SegformerConfig.get_config_dict(weights)
    except (OSError, ValueError) as error:
        raise ValueError(f"model.weights must be {expected}; got {weights!r}: {error}") from error
    require(bool(stored), "model.weights", weights, expected)
    for key in ("model_type", "hidden_sizes", "depths"):
        ours, theirs = getattr(config, key), stored.get(key)
        if theirs is None or tuple(theirs) != tuple(ours):
            raise ValueError(
                f"model.weights must be of {name}, with {key} {ours}; {weights!r} has {theirs}"
            )
    try:
        loaded: Any = SegformerModel.from_pretrained(
            weights, config=config, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, RuntimeError) as error:
        raise ValueError(f"model.weights {weights!r} do not load into {name}: {error}") from error
    model, report = loaded
    check_complete(name, weights, report)
    return model.train()


def _load_file(name: str, model: Any, path: Path) -> Any:
    """Give a SegformerModel the ImageNet weights of a published file; return the model."""
    try:
        model.load_state_dict(rename_mit(bare_state(read_file(path))))
    except RuntimeError as error:
        reason = str(error)[:400]
        raise ValueError(f"model.weights {str(path)!r} do not fit {name}: {reason}") from error
    return model


def network_stride(config: ModelConfig) -> int:
    """Return the side [pixels] of a cell of the network that `config` describes, unbuilt."""
    cell = _strides(config)[-1 if config.head == "deeplabv2" else 0]
    return 2 * cell if config.hrda.enabled else cell


def patch_stride(config: ModelConfig) -> int:
    """Return the side [pixels] of a cell of the patch embeddings.

    Raises:
        ValueError: a `patch_stride` that is not a multiple of the network's stride.
    """
    stride, given = network_stride(config), config.patch_stride
    if given is None:
        return stride
    fits = given > 0 and given % stride == 0
    require(fits, "model.patch_stride", given, f"a multiple of {stride}, the network's stride")
    return given


def coarsest_stride(config: ModelConfig) -> int:
    """Return the side [pixels] of a cell of its encoder's last map, as the encoder sees images."""
    return _strides(config)[-1]


def _strides(config: ModelConfig) -> tuple[int, ...]:
    kinds = {"streets_s": StreetsEncoder, "resnet101": ResNetEncoder}
    return kinds.get(config.encoder, MitEncoder).strides


def build_encoder(config: ModelConfig) -> Encoder:
    """Return the encoder that `config` names."""
    if config.encoder == "streets_s":
        encoder = StreetsEncoder()
    elif config.encoder == "resnet101":
        encoder = ResNetEncoder(weights=config.weights)
    elif config.encoder in BACKBONES:
        kind = ConvNextEncoder if config.encoder.startswith("convnext") else BackboneEncoder
        encoder = kind(config.encoder, weights=config.weights, drop_path=config.drop_path)
    else:
        encoder = MitEncoder(config.encoder, weights=config.weights, drop_path=config.drop_path)
    if config.checkpoint_activations:
        encoder.recompute_activations()
    return encoder
