# SPDX-License-Identifier: Apache-2.0
"""Encoders that transformers implements: DINOv2, DINOv3, ConvNeXt and Swin.

Pretrained weights have licences of their own; DINOv3's restricts use.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from pipa_fast.models.interfaces import Encoder, LibraryEncoder
from pipa_fast.models.published_names import check_complete

CELL = 16
"""Side of a plain transformer's token [pixels of the image that comes in]."""


class Backbone(NamedTuple):
    """A class of transformers, without "Config" or "Backbone", and its settings."""

    family: str
    settings: dict[str, Any]


def _vit(width: int, depth: int, heads: int) -> dict[str, Any]:
    return {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads}


def _dinov2(width: int, depth: int, heads: int) -> Backbone:
    settings = {"image_size": 518, "patch_size": 14}
    return Backbone("Dinov2", _vit(width, depth, heads) | settings)


def _dinov3(width: int, depth: int, heads: int) -> Backbone:
    # Rescaled positions would be drawn anew in each pass in training mode, the teacher's too.
    fixed = {"num_register_tokens": 4, "pos_embed_rescale": None}
    settings = {"intermediate_size": 4 * width} | fixed
    return Backbone("DINOv3ViT", _vit(width, depth, heads) | settings)


def _convnext(width: int, depth: int) -> Backbone:
    sizes = [width * 2**i for i in range(4)]
    return Backbone("ConvNext", {"hidden_sizes": sizes, "depths": [3, 3, depth, 3]})


def _swin(width: int, depth: int) -> Backbone:
    heads = [width * 2**i // 32 for i in range(4)]
    settings = {"embed_dim": width, "depths": [2, 2, depth, 2], "num_heads": heads}
    return Backbone("Swin", settings)


BACKBONES: dict[str, Backbone] = {
    "dinov2_s": _dinov2(384, 12, 6),
    "dinov2_b": _dinov2(768, 12, 12),
    "dinov2_l": _dinov2(1024, 24, 16),
    "dinov3_s": _dinov3(384, 12, 6),
    "dinov3_b": _dinov3(768, 12, 12),
    "dinov3_l": _dinov3(1024, 24, 16),
    "convnext_t": _convnext(96, 9),
    "convnext_s": _convnext(96, 27),
    "convnext_b": _convnext(128, 27),
    "swin_t": _swin(96, 6),
    "swin_s": _swin(96, 18),
    "swin_b": _swin(128, 18),
}


class Pyramid(nn.Module):
    """Four maps of one cell size to strides of a quarter, a half, once and twice that size."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            [
                nn.Sequential(_double(width), nn.GELU(), _double(width)),
                _double(width),
                nn.Identity(),
                nn.MaxPool2d(2, ceil_mode=True),
            ]
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Return [B, C, f h, f w] with f = 4, 2, 1, 1/2 of four maps [B, C, h, w]."""
        return [level(x) for level, x in zip(self.levels, maps, strict=True)]


def _double(width: int) -> nn.Module:
    """Return a transposed convolution that doubles height and width."""
    return nn.ConvTranspose2d(width, width, 2, stride=2)


class BackboneEncoder(LibraryEncoder):
    """A backbone's four stages; of a plain transformer, four depths made into a pyramid.

    A plain transformer's images are resized so that a token covers 16 pixels, whatever its own
    patch size is, and its maps at a quarter, a half, three quarters and all of its depth go through
    transposed convolutions or pooling to strides 4, 8, 16 and 32 (ViTDet, arXiv 2203.16527, takes
    the last depth alone).
    """

    strides: tuple[int, ...] = (4, 8, 16, 32)

    def __init__(self, name: str, *, weights: str | None = None, drop_path: float = 0.1) -> None:
        super().__init__()
        family, settings = BACKBONES[name]
        depth = settings.get("num_hidden_layers", 4)
        features = [f"stage{depth * i // 4}" for i in range(1, 5)]
        settings = settings | {"drop_path_rate": drop_path, "out_features": features}
        self.model = _build(name, family, settings, weights)
        self.channels: tuple[int, ...] = tuple(self.model.channels)
        self.patch: int | None = (
            settings.get("patch_size", 16) if "hidden_size" in settings else None
        )
        self.windowed = family == "Swin"
        self.pyramid = Pyramid(self.channels[0]) if self.patch else None
        # No feature map depends on these: DDP would wait for their gradients.
        for path, parameter in self.model.named_parameters():
            if path.endswith("mask_token") or path.startswith("swin.layernorm."):
                parameter.requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return features [B, C_i, H/s_i, W/s_i] of normalised images [B, 3, H, W]."""
        if self.pyramid is None or self.patch is None:
            return list(self.model(images).feature_maps)
        sides = images.shape[2:]
        images = _at(images, [self.patch * count for count in _cells(sides, CELL)])
        maps = self.pyramid(list(self.model(images).feature_maps))
        # The images may have been enlarged to whole tokens; their cells are those of the strides.
        return [_at(x, _cells(sides, s)) for x, s in zip(maps, self.strides, strict=True)]

    def recompute_activations(self) -> None:
        """Keep only what enters each block, and compute the rest again in the backward pass."""
        super().recompute_activations()
        for module in self.model.modules():
            if type(module).__name__ == "SwinStage":  # its blocks would be computed a third time
                module.gradient_checkpointing = False


class ConvNextEncoder(BackboneEncoder):
    """ConvNeXt block by block: transformers cannot recompute its activations."""

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return features [B, C_i, H/s_i, W/s_i] of normalised images [B, 3, H, W]."""
        x, features = self.model.embeddings(images), []
        norms = self.model.hidden_states_norms.values()
        for stage, norm in zip(self.model.encoder.stages, norms, strict=True):
            for block in (*stage.downsampling_layer, *stage.layers):
                x = self.run_block(block, x)
            features.append(norm(x))
        return features

    def recompute_activations(self) -> None:
        """Keep only what enters each block, and compute the rest again in the backward pass."""
        Encoder.recompute_activations(self)


def _cells(sides: Sequence[int], cell: int) -> list[int]:
    """Return how many cells cover each of an image's sides [pixels]."""
    return [-(-side // cell) for side in sides]


def _at(x: Tensor, size: list[int]) -> Tensor:
    """Return [B, C, *size] of [B, C, h, w], bilinearly."""
    if size == list(x.shape[2:]):
        return x
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def _build(name: str, family: str, settings: dict[str, Any], weights: str | None) -> Any:
    """Return the backbone in training mode, at random or with all weights of a folder or hub name.

    Raises:
        ValueError: the weights cannot be found, or are not all there.
    """
    import transformers  # takes seconds; only for who needs it

    config = getattr(transformers, f"{family}Config")(**settings)
    kind = getattr(transformers, f"{family}Backbone")
    if weights is None:
        return kind(config).train()
    if Path(weights).is_file():
        raise ValueError(f"model.weights of {name} must be a folder or a hub's name; got {weights}")
    try:
        model, report = kind.from_pretrained(weights, config=config, output_loading_info=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"model.weights {weights!r} do not load into {name}: {error}") from error
    check_complete(name, weights, report)
    return model.float().train()
