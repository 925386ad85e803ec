# SPDX-License-Identifier: Apache-2.0
"""The segmentation network: encoder, decode head, and projection heads for training."""

import copy
import math
from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pipa_fast.checks import require
from pipa_fast.models.interfaces import Encoder, Head
from pipa_fast.models.projection import ProjectionHead
from pipa_fast.models.window import Window

# ImageNet's, of RGB in [0, 1].
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)
UNDECAYED = (
    "position_embeddings",
    "relative_position_bias_table",
    "cls_token",
    "register_tokens",
)


class Outputs(NamedTuple):
    """What a forward pass returns. Maps are at the network's stride but where told otherwise."""

    logits: Tensor  # [B, K, h, w]; HRDA's at half its stride
    pixel: Tensor | None  # [B, pixel_dim, h, w] float32, each cell of unit length; of `window`
    patch: Tensor | None  # [B, patch_dim, h, w] float32 at `patch_stride`, of unit length
    deep: Tensor | None = None  # [B, C, h', w'] the encoder's last stage
    detail: Tensor | None = None  # [B, K, h", w"] HRDA's logits of the window alone
    window: Window | None = None  # of the images that `pixel` and `detail` show; None: all


class SegmentationNetwork(nn.Module):
    """Images to logits and, where asked for, embeddings.

    Images are RGB in [0, 1]; the network normalises them. `stride` is the side of a cell of the
    logits and embeddings, `least_side` that of the smallest image [pixels].
    """

    mean: Tensor
    std: Tensor
    detail_size: tuple[int, int] | None = None
    """Height and width of the window that a training step draws; None: it looks at the whole."""
    compiled: bool = False

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
        self.least_side: int = size_multiple(self)
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)

    def forward(
        self,
        images: Tensor,
        *,
        embed: tuple[str, ...] = (),
        touch: bool = False,
        fused: Tensor | None = None,
        window: Window | None = None,
        context_only: bool = False,
    ) -> Outputs:
        """Segment images.

        Args:
            images: [B, 3, H, W] float RGB in [0, 1].
            embed: which projection heads to run, of "pixel" and "patch".
            touch: add 0 times every parameter that an output may not depend on to each output, so
                that DDP's reducer sees all parameters whichever output the loss reads.
            fused: [B, C, h, w], read by classifier and projection heads in place of the images'
                own fused map; the images are not looked at.
            window: None: this network has no detail windows, see HRDANetwork.
            context_only: without effect: the image itself is the context.

        Raises:
            ValueError: images of another shape, a projection head that is not there or cannot read
                `fused`, or a window.
        """
        require(window is None, "window", window, "None for a network without detail")
        self._check_embed(embed, fused)
        stages = None if fused is not None else self.encode(images)
        own = self.head(stages) if stages is not None else fused
        assert own is not None
        maps = {"logits": self.head.classify(own)}
        maps |= {name: self.projections[name](own, stages) for name in embed}
        if stages is not None:
            maps["deep"] = stages[-1]
        return self._outputs(maps, None, touch=touch, whole=fused is not None)

    def context(self, images: Tensor) -> Tensor:
        """Return the images as the encoder sees them whole."""
        return images

    def encode(self, images: Tensor) -> list[Tensor]:
        """Return the encoder's maps [B, C_i, h_i, w_i] of images [B, 3, H, W] in [0, 1]."""
        shape = tuple(images.shape)
        require(len(shape) == 4 and shape[1] == 3, "images", shape, "of shape [B, 3, H, W]")
        floating = images.is_floating_point()
        require(floating, "images", images.dtype, "of a float dtype, with values in [0, 1]")
        return self.encoder((images - self.mean) / self.std)

    def fused(self, images: Tensor) -> Tensor:
        """Return the map [B, C, h, w] of the context, which the patch embeddings are made of."""
        return self.head(self.encode(self.context(images)))

    def _check_embed(self, embed: tuple[str, ...], fused: Tensor | None) -> None:
        known = ", ".join(self.projections) or "nothing, as there are no projection heads"
        for name in embed:
            require(name in self.projections, "embed", name, f"of {known}")
            if fused is not None and self.projections[name].joined:
                raise ValueError(f"fused must be None for {name} embeddings of the encoder's maps")

    def _outputs(
        self, maps: dict[str, Tensor], window: Window | None, *, touch: bool, whole: bool
    ) -> Outputs:
        """Name the maps; `touch` them with all parameters if `whole`, else the seldom used."""
        if touch:
            # A head that reads the last map alone leaves what is made of the others unused.
            every = whole or self.head.level != 0
            zero = self._nothing([self] if every else self._heads())
            maps = {name: value + zero.to(value.dtype) for name, value in maps.items()}
        named = {name: maps.get(name) for name in ("pixel", "patch", "deep", "detail")}
        return Outputs(logits=maps["logits"], window=window, **named)

    def _heads(self) -> list[nn.Module]:
        """Return all modules but the encoder."""
        return [module for name, module in self.named_children() if name != "encoder"]

    def idle(self, embed: Collection[str], *, classified: bool) -> list[nn.Module]:
        """Return the modules on which neither these embeddings nor, if read, the logits depend."""
        idle = [head for name, head in self.projections.items() if name not in embed]
        if not classified:
            fused = any(not self.projections[name].joined for name in embed)
            idle += self._classifiers() if fused else [self.head, *self._classifiers()]
        return idle

    def _classifiers(self) -> list[nn.Module]:
        """Return the modules that only logits depend on."""
        return [self.head.conv_seg]

    @staticmethod
    def _nothing(modules: list[nn.Module]) -> Tensor:
        """Return a zero [] that depends on every parameter of the modules."""
        parameters = [p for m in modules for p in m.parameters() if p.requires_grad]
        return 0 * torch.stack([p.sum() for p in parameters]).sum()

    def compile_encoder(self) -> None:
        """Let the encoder go through torch.compile; names in the state dict stay.

        Each size of images has programs of its own: torch 2.13 has none for a MiT's gradient at
        any size. The decode head stays as it is: that torch's gradients through its enlarged maps
        and batch norm are wrong, and nothing tells.
        """
        self.encoder.compile(dynamic=False)
        self.compiled = True

    def export(self) -> "SegmentationNetwork":
        """Return a copy without projection heads: what inference needs."""
        heads, self.projections = self.projections, nn.ModuleDict()
        try:
            made = copy.deepcopy(self)
        finally:
            self.projections = heads
        if self.compiled:  # which modules do not hand on to their copies
            made.compile_encoder()
        return made

    def parameter_groups(
        self, *, lr: float = 6e-5, weight_decay: float = 0.01, head_lr_multiplier: float = 10.0
    ) -> list[dict[str, Any]]:
        """Return an optimizer's groups, with every parameter in exactly one.

        The decode head and the projection heads learn at `head_lr_multiplier` times the rate. Norm
        layers do not decay (DAFormer's `paramwise_cfg`), nor do position embeddings and tokens that
        are no pixels' (mmsegmentation's of ViT and Swin).
        """
        groups = []
        for name, modules, rate in (
            ("encoder", [self.encoder], lr),
            ("heads", self._heads(), lr * head_lr_multiplier),
        ):
            kept, others = [], []
            for part in (part for module in modules for part in module.modules()):
                for key, parameter in part.named_parameters(recurse=False):
                    still = isinstance(part, NORMS) or key in UNDECAYED
                    (kept if still else others).append(parameter)
            for suffix, params, decay in (("", others, weight_decay), (".norms", kept, 0.0)):
                if params:
                    groups.append(
                        {"name": name + suffix, "params": params, "lr": rate, "weight_decay": decay}
                    )
        return groups


def size_multiple(network: Any) -> int:
    """Return what height and width of exported images are multiples of [pixels]."""
    return math.lcm(network.stride, network.encoder.strides[-1])
