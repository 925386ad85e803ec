# SPDX-License-Identifier: Apache-2.0
"""The segmentation network: encoder, head, and the projections that training adds."""

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pipa_fast.checks import require
from pipa_fast.models.config import ModelConfig
from pipa_fast.models.encoders import build_encoder
from pipa_fast.models.heads import build_head
from pipa_fast.models.projection import Projection


class Outputs(NamedTuple):
    """What a network says of images; all maps at its stride."""

    logits: Tensor  # [B, K, h, w]
    pixel: Tensor | None  # [B, pixel_dim, h, w], unit vectors
    patch: Tensor | None  # [B, patch_dim, h, w], unit vectors


class SegmentationNetwork(nn.Module):
    """Maps images in [0, 1] to logits and, on request, to embeddings."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        # ImageNet's, in RGB
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1), False)
        self.encoder = build_encoder(config)
        self.head = build_head(config, self.encoder)
        self.stride = 4
        # last, so that the segmentation part's random start is the same without them
        self.projections = nn.ModuleDict()
        if config.projections:
            channels = self.head.channels
            self.projections["pixel"] = Projection(channels, config.pixel_dim)
            self.projections["patch"] = Projection(channels, config.patch_dim)

    def forward(
        self,
        images: Tensor,
        *,
        embed: tuple[str, ...] = (),
        touch: bool = False,
        fused: Tensor | None = None,
    ) -> Outputs:
        """Return logits and the named embeddings.

        Args:
            images: [B, 3, H, W] in [0, 1], H and W multiples of the encoder's largest stride.
            embed: which projections to run: "pixel", "patch".
            touch: adds 0 times the parameters that this call leaves out to the logits, so that a
                DDP reducer sees a gradient for each.
            fused: a decoder map [B, C, h, w] to project in place of the images' own.

        Raises:
            ValueError: a projection that the network does not have.
        """
        for name in embed:
            require(name in self.projections, "embed", name, f"of {list(self.projections)}")
        own = self.fused(images)
        logits = self.head.classify(own)
        if touch:
            idle = [m for name, m in self.projections.items() if name not in embed]
            if fused is not None:
                idle = [self.encoder, self.head]
            for parameter in (p for module in idle for p in module.parameters()):
                logits = logits + 0 * parameter.sum()
        read = own if fused is None else fused
        made = {name: self.projections[name](read) for name in embed}
        return Outputs(logits, made.get("pixel"), made.get("patch"))

    def fused(self, images: Tensor) -> Tensor:
        """Return the decoder's map [B, C, h, w] of images [B, 3, H, W] in [0, 1]."""
        return self.head.fused(self.encoder((images - self.mean) / self.std))

    def export(self) -> "SegmentationNetwork":
        """Return a copy without projections: what inference needs, and all that it needs."""
        bare = copy.copy(self)
        bare._modules = {k: v for k, v in self._modules.items() if k != "projections"}
        bare = copy.deepcopy(bare)
        bare.projections = nn.ModuleDict()
        return bare

    def parameter_groups(
        self, *, lr: float, weight_decay: float, head_lr_multiplier: float
    ) -> list[dict[str, Any]]:
        """Return optimizer groups: encoder and heads, with and without weight decay.

        Normalisation layers do not decay. Heads and projections take `head_lr_multiplier` times
        the rate.
        """
        norms = (nn.GroupNorm, nn.LayerNorm, nn.modules.batchnorm._BatchNorm)
        undecayed = {
            id(p)
            for module in self.modules()
            if isinstance(module, norms)
            for p in module.parameters(recurse=False)
        }
        groups = []
        for is_head in (False, True):
            for decays in (True, False):
                chosen = [
                    p
                    for name, p in self.named_parameters()
                    if (not name.startswith("encoder.")) == is_head
                    and (id(p) not in undecayed) == decays
                ]
                if chosen:
                    groups.append(
                        {
                            "params": chosen,
                            "lr": lr * (head_lr_multiplier if is_head else 1.0),
                            "weight_decay": weight_decay if decays else 0.0,
                        }
                    )
        return groups


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """Batch norm with fixed statistics also in training: the same on any number of ranks."""

    def train(self, mode: bool = True) -> "FrozenBatchNorm2d":
        """Keep to the stored statistics in either mode."""
        return super().train(False)


def build_network(config: ModelConfig) -> SegmentationNetwork:
    """Return the network that a ModelConfig describes."""
    network = SegmentationNetwork(config)
    if config.batch_norm == "sync":
        converted = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        assert isinstance(converted, SegmentationNetwork)
        network = converted
    elif config.batch_norm == "frozen":
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.__class__ = FrozenBatchNorm2d
        network.train()
    return network
