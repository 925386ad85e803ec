# SPDX-License-Identifier: Apache-2.0
"""The segmentation network: encoder, decode head, and projection heads for training."""

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pipa_fast.checks import require
from pipa_fast.models.config import BatchNorm, ModelConfig
from pipa_fast.models.encoders import build_encoder
from pipa_fast.models.heads import build_head
from pipa_fast.models.interfaces import Encoder, Head
from pipa_fast.models.projection import ProjectionHead
from pipa_fast.models.speed import speed_up

# ImageNet's, of RGB in [0, 1].
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)


class Outputs(NamedTuple):
    """What a forward pass returns; all maps are at the network's stride."""

    logits: Tensor  # [B, K, h, w]
    pixel: Tensor | None  # [B, pixel_dim, h, w] float32, each cell of unit length
    patch: Tensor | None  # [B, patch_dim, h, w] float32, each cell of unit length


class SegmentationNetwork(nn.Module):
    """Images to logits and, where asked for, embeddings.

    Images are RGB in [0, 1]; the network normalises them. `stride` is the side of a cell of the
    logits and embeddings [pixels].
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        encoder: Encoder,
        head: Head,
        projections: dict[str, ProjectionHead],
    ) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head
        self.projections = nn.ModuleDict(projections)
        self.stride: int = encoder.strides[head.level]
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)

    def forward(
        self,
        images: Tensor,
        *,
        embed: tuple[str, ...] = (),
        touch: bool = False,
        fused: Tensor | None = None,
    ) -> Outputs:
        """Segment images.

        Args:
            images: [B, 3, H, W] float RGB in [0, 1].
            embed: which projection heads to run, of "pixel" and "patch".
            touch: add 0 times every parameter that an output may not depend on to each output, so
                that DDP's reducer sees all parameters whichever output the loss reads.
            fused: [B, C, h, w], read by classifier and projection heads in place of the images'
                own fused map; the images are not looked at.

        Raises:
            ValueError: images of another shape, or a projection head that is not there.
        """
        for name in embed:
            known = ", ".join(self.projections) or "nothing, as there are no projection heads"
            require(name in self.projections, "embed", name, f"of {known}")
        own = self.fused(images) if fused is None else fused
        maps = {"logits": self.head.classify(own)}
        maps |= {name: self.projections[name](own) for name in embed}
        if touch:
            zero = self._nothing(
                [self.head.conv_seg, self.projections] if fused is None else [self]
            )
            maps = {name: value + zero.to(value.dtype) for name, value in maps.items()}
        return Outputs(maps["logits"], maps.get("pixel"), maps.get("patch"))

    def fused(self, images: Tensor) -> Tensor:
        """Return the map [B, C, h, w] that classifier and projection heads read."""
        shape = tuple(images.shape)
        require(len(shape) == 4 and shape[1] == 3, "images", shape, "of shape [B, 3, H, W]")
        return self.head(self.encoder((images - self.mean) / self.std))

    @staticmethod
    def _nothing(modules: list[nn.Module]) -> Tensor:
        """Return a zero [] that depends on every parameter of the modules."""
        parameters = [p for m in modules for p in m.parameters() if p.requires_grad]
        return 0 * torch.stack([p.sum() for p in parameters]).sum()

    def export(self) -> "SegmentationNetwork":
        """Return a copy without projection heads: what inference needs."""
        heads, self.projections = self.projections, nn.ModuleDict()
        try:
            return copy.deepcopy(self)
        finally:
            self.projections = heads

    def parameter_groups(
        self, *, lr: float = 6e-5, weight_decay: float = 0.01, head_lr_multiplier: float = 10.0
    ) -> list[dict[str, Any]]:
        """Return an optimizer's groups, with every parameter in exactly one.

        The decode head and the projection heads learn at `head_lr_multiplier` times the rate, and
        norm layers do not decay (DAFormer's `paramwise_cfg`).
        """
        groups = []
        for name, modules, rate in (
            ("encoder", [self.encoder], lr),
            ("heads", [self.head, self.projections], lr * head_lr_multiplier),
        ):
            parts = [part for module in modules for part in module.modules()]
            norms = [p for m in parts if isinstance(m, NORMS) for p in m.parameters()]
            others = [
                p for m in parts if not isinstance(m, NORMS) for p in m.parameters(recurse=False)
            ]
            for suffix, params, decay in (("", others, weight_decay), (".norms", norms, 0.0)):
                if params:
                    groups.append(
                        {"name": name + suffix, "params": params, "lr": rate, "weight_decay": decay}
                    )
        return groups


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """Batch norm by stored statistics also in training; scale and shift still learn."""

    def train(self, mode: bool = True) -> "FrozenBatchNorm2d":
        """Stay in evaluation mode."""
        super().train(False)
        return self


def convert_batch_norm(network: nn.Module, kind: BatchNorm) -> None:
    """Give the batch norm layers inside `network` the statistics that `kind` names, in place."""
    if kind == "batch":
        return
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if type(child) is not nn.BatchNorm2d:
                continue
            if kind == "frozen":
                made = FrozenBatchNorm2d(child.num_features, eps=child.eps)
                made.load_state_dict(child.state_dict())
                made.train()
            else:
                made = nn.SyncBatchNorm.convert_sync_batchnorm(child)
            setattr(parent, name, made)


def build_network(config: ModelConfig) -> SegmentationNetwork:
    """Return the network that `config` describes, in training mode.

    Its weights follow torch's global seed; projection heads draw theirs last, so that the rest is
    the same with them and without.

    Raises:
        ValueError: weights that cannot be found or do not fit.
    """
    encoder = build_encoder(config)
    head = build_head(config, encoder.channels)
    projections = {}
    if config.projections:
        projections["pixel"] = ProjectionHead(head.channels, config.pixel_dim)
        projections["patch"] = ProjectionHead(head.channels, config.patch_dim)
    network = SegmentationNetwork(encoder, head, projections)
    convert_batch_norm(network, config.batch_norm)
    speed_up(network, config)
    return network
