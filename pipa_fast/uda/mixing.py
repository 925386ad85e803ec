# SPDX-License-Identifier: Apache-2.0
"""ClassMix, half of the source's classes pasted onto target images (arXiv 2007.07936); masks."""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from pipa_fast.data.random import uniform

MAX_LABEL = 256  # one row for every value of an 8-bit label, 255 (unlabelled) included


class Mixed(NamedTuple):
    """A mixed batch, its labels and the weight of every pixel."""

    images: Tensor  # [B, 3, H, W]
    labels: Tensor  # [B, H, W] int64
    weights: Tensor  # [B, H, W] float32


def class_masks(
    labels: Tensor,  # [B, H, W] int64 in 0 … 255
    *,
    seed: int,
    iteration: Tensor,  # [] int64
    index: Tensor,  # [B] int64
    group: dist.ProcessGroup | None = None,
) -> Tensor:  # [B, H, W] bool
    """Choose half (rounded up) of the classes that occur in the batch, anew for every image.

    The classes are those of the whole batch over all ranks, unlabelled pixels among them, as in
    the lineage (DAFormer's `dacs_transforms.py`). Nothing is read back to the host.
    """
    present = torch.zeros(MAX_LABEL, dtype=torch.int32, device=labels.device)
    present.scatter_(0, labels.flatten(), 1)
    if group is not None:
        dist.all_reduce(present, dist.ReduceOp.MAX, group=group)
    scores = uniform(seed, "class_mix", iteration, index, MAX_LABEL)  # [B, 256] in [0, 1)
    scores = torch.where(present.bool(), scores, 2.0)
    rank = scores.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    chosen = rank < (present.sum() + 1) // 2  # [B, 256]
    return chosen.gather(1, labels.flatten(1)).view_as(labels)


def block_masks(
    images: Tensor,  # [B, 3, H, W]
    *,
    block: int,
    ratio: float,
    seed: int,
    iteration: Tensor,  # [] int64
    index: Tensor,  # [B] int64
) -> Tensor:  # [B, 1, H, W] bool, True where the image shows
    """Hide `ratio` of the blocks of `block` pixels a side, each image by its own draw.

    Source: MIC (Hoyer et al., CVPR 2023), equation 4; blocks at the right and lower border are cut.
    """
    height, width = images.shape[2:]
    rows, columns = -(-height // block), -(-width // block)
    draw = uniform(seed, "block_mask", iteration, index, rows * columns)
    shown = (draw >= ratio).view(-1, 1, rows, columns)
    shown = shown.repeat_interleave(block, 2).repeat_interleave(block, 3)
    return shown[:, :, :height, :width]


def mix(
    mask: Tensor,  # [B, H, W] bool, or [B, 1, 1]: True where the source shows
    source: tuple[Tensor, Tensor],  # images [B, 3, H, W], labels [B, H, W]
    target: tuple[Tensor, Tensor, Tensor],  # images, pseudo labels, weights [B, H, W]
) -> Mixed:
    """Paste source pixels over target pixels; a pasted pixel weighs 1."""
    images = torch.where(mask[:, None], source[0], target[0])
    labels = torch.where(mask, source[1], target[1])
    weights = torch.where(mask, 1.0, target[2])
    return Mixed(images, labels, weights)
