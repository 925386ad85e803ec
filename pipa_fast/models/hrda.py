# SPDX-License-Identifier: Apache-2.0
"""HRDA: one network looks at a reduced image for context and at full-resolution windows for detail.

Learned attention chooses between the two, pixel by pixel and class by class (Hoyer et al., ECCV
2022, arXiv 2204.13132; `hrda_head.py` and `hrda_encoder_decoder.py` of its release).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipa_fast.checks import require
from pipa_fast.models.config import HRDAConfig, ModelConfig
from pipa_fast.models.heads import DAFormerHead, LightHead
from pipa_fast.models.interfaces import Encoder, Head
from pipa_fast.models.network import Outputs, SegmentationNetwork
from pipa_fast.models.projection import ProjectionHead
from pipa_fast.models.window import Window, starts

REDUCTION = 2
"""The context is seen at one over this of the image's size."""


class HRDANetwork(SegmentationNetwork):
    """Context and detail by one encoder and head, fused by scale attention.

    Logits are at the encoder's own stride, those of the context and its embeddings at `stride`,
    REDUCTION times as much. Images must have sides that are multiples of `stride`.
    """

    def __init__(
        self,
        encoder: Encoder,
        head: Head,
        attention: Head,
        projections: dict[str, ProjectionHead],
        config: HRDAConfig,
    ) -> None:
        super().__init__(encoder, head, projections)
        self.attention = attention
        self.cell = self.stride
        self.stride = REDUCTION * self.cell
        self.least_side *= REDUCTION
        least = 2 * self.stride
        require(
            all(side > 0 and side % least == 0 for side in config.detail),
            "model.hrda.detail",
            config.detail,
            f"two positive multiples of {least}, so that windows overlap by half on the grid",
        )
        self.detail_size: tuple[int, int] = config.detail

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
            images: [B, 3, H, W] float RGB in [0, 1], H and W multiples of `stride`.
            embed: which projection heads to run: "pixel" reads the detail of `window`, "patch" the
                context.
            touch: as `SegmentationNetwork.forward`.
            fused: [B, C, h, w], read in place of the context's fused map; implies `context_only`.
            window: where the detail is taken, the attention being 0 elsewhere. None takes
                overlapping windows over the whole image, and averages their logits.
            context_only: whether to leave out detail and attention; logits are then the context's.

        Raises:
            ValueError: images of another shape, a window outside them, or embeddings of a detail
                that is not looked at.
        """
        self._check_embed(embed, fused)
        context_only = context_only or fused is not None
        stages = None if fused is not None else self.encode(self.context(images))
        context = self.head(stages) if stages is not None else fused
        assert context is not None
        maps = {"logits": self.head.classify(context)}
        if "patch" in embed:
            maps["patch"] = self.projections["patch"](context)
        if "pixel" in embed and (window is None or context_only):
            raise ValueError("embed='pixel' reads the detail, for which a window must be given")
        if stages is not None:
            maps["deep"] = stages[-1]
        if not context_only:
            attention = torch.sigmoid(self.attention.classify(self.attention(stages)))
            if window is None:
                detail = self._slide(images)
            else:
                near = self.encode(window.of(images))
                inside = self.head(near)
                detail = maps["detail"] = self.head.classify(inside)
                if "pixel" in embed:
                    maps["pixel"] = self.projections["pixel"](inside, near)
            maps["logits"] = fuse(maps["logits"], detail, attention, window, self.stride)
        return self._outputs(maps, window, touch=touch, whole=fused is not None)

    def context(self, images: Tensor) -> Tensor:
        """Return the images [B, 3, H / 2, W / 2], reduced bilinearly."""
        shape = tuple(images.shape)
        whole = len(shape) == 4 and shape[2] % self.stride == 0 and shape[3] % self.stride == 0
        require(whole, "images", shape, f"[B, 3, H, W], H and W multiples of {self.stride}")
        size = (shape[2] // REDUCTION, shape[3] // REDUCTION)
        return F.interpolate(images, size=size, mode="bilinear", align_corners=False)

    def _classifiers(self) -> list[nn.Module]:
        """Return the modules that only logits depend on."""
        return [*super()._classifiers(), self.attention]

    def _slide(self, images: Tensor) -> Tensor:
        """Return the mean logits [B, K, H / cell, W / cell] of windows that overlap by half.

        All windows go through the network in one batch, as in the release: batch-norm layers that
        use the batch's own statistics see them all.
        """
        windows = sliding_windows((images.shape[2], images.shape[3]), self.detail_size)
        crops = torch.cat([window.of(images) for window in windows])
        pieces = self.head.classify(self.head(self.encode(crops)))
        # not chunk(), which would fix the batch size of an exported graph
        return mean_of_windows(pieces.unflatten(0, (len(windows), -1)), windows, images, self.cell)


def sliding_windows(image: tuple[int, int], size: tuple[int, int]) -> list[Window]:
    """Return windows of `size` [pixels] over an image, half a window apart, the last moved inwards.

    A side on which the image is smaller than a window is taken whole.
    """
    axes = []
    for length, side in zip(image, size, strict=True):
        side = min(side, length)
        axes.append([(at, at + side) for at in starts(length, side, side // 2)])
    return [Window(y0, x0, y1, x1) for y0, y1 in axes[0] for x0, x1 in axes[1]]


def mean_of_windows(
    pieces: Tensor,  # [N, B, K, h, w] logits of N windows
    windows: Sequence[Window],
    images: Tensor,  # [B, 3, H, W] that the windows are of
    cell: int,  # of the pieces [pixels]
) -> Tensor:  # [B, K, H / cell, W / cell], float32 under autocast too
    """Average the logits of windows where they overlap."""
    size = (images.shape[2] // cell, images.shape[3] // cell)
    total, count = images.new_zeros(*pieces.shape[1:3], *size), images.new_zeros(size)
    for window, piece in zip(windows, pieces, strict=True):
        window.of(total, cell).add_(piece)
        window.of(count, cell).add_(1)
    return total / count


def fuse(
    context: Tensor,  # [B, K, h, w] logits
    detail: Tensor,  # [B, K, ...] logits at REDUCTION times the resolution, within the window
    attention: Tensor,  # [B, K, h, w] in [0, 1], the detail's share
    window: Window | None,
    stride: int,  # of the context's cells [pixels]
) -> Tensor:  # [B, K, REDUCTION h, REDUCTION w]
    """Return up((1 - a) context) + up(a) detail, with a = 0 outside the window (equation 7)."""
    size = (REDUCTION * context.shape[2], REDUCTION * context.shape[3])
    if window is not None:
        inside = torch.zeros_like(attention)
        window.of(inside, stride).copy_(window.of(attention, stride))
        attention = inside
        placed = detail.new_zeros(*context.shape[:2], *size)
        window.of(placed, stride // REDUCTION).copy_(detail)
        detail = placed
    return _enlarge((1 - attention) * context, size) + _enlarge(attention, size) * detail


def _enlarge(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def build_attention(config: ModelConfig, channels_in: tuple[int, ...]) -> Head:
    """Return the head whose sigmoid is the detail's share: one 1x1 convolution fuses its maps."""
    if config.head == "light":
        return LightHead(channels_in, config.num_classes)
    return DAFormerHead(channels_in, config.num_classes, config.dropout, fusion="conv")
