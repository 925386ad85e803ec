# SPDX-License-Identifier: Apache-2.0
"""Draw anchors for pixel contrast, balanced over images, classes, and easy and hard pixels."""

import torch
from torch import Tensor

from pipa_fast.ops._checks import check_count, check_integer, check_rank, check_share, integers
from pipa_fast.ops._random import compact, position_hash


def sample_anchors(
    labels: Tensor,
    predictions: Tensor,
    *,
    seed: int | Tensor,
    num_anchors: int = 1024,
    max_per_class: int = 100,
    hard_fraction: float = 0.5,
    ignore_index: int = 255,
) -> tuple[Tensor, Tensor]:
    """Draw pixels without replacement, the same number from every class present in every image.

    That number is min(num_anchors // (image, class) pairs present, max_per_class): none where more
    pairs are present than anchors are wanted. `hard_fraction` of it (rounded down) are hard pixels,
    whose prediction is wrong, and the rest easy ones; where there are too few of one kind, the
    other kind fills up. Within each kind all pixels are equally likely.

    Args:
        labels: [B, H, W] integers; `ignore_index` is never drawn.
        predictions: [B, H, W] integers.
        seed: an int, or an int64 tensor [] or, one for each image, [B]. Equal seeds draw equally.
            Under torch.compile give a tensor: a new int is a new program.
        num_anchors: length of the outputs, at least 0.
        max_per_class: at least 0.
        hard_fraction: in [0, 1].

    Returns:
        index [num_anchors] int64 into the flattened B·H·W (padded with 0), and its labels
        [num_anchors] int64 (padded with `ignore_index`), ordered by image and class.

    Raises:
        ValueError: a shape, dtype, device or number that does not fit.

    Source: PiPa (arXiv 2211.07609), section 3.2, after ContrastiveSeg's hard anchor sampling.
    """
    check_rank("labels", labels, "B H W")
    shape = tuple(labels.shape)
    predictions = integers("predictions", predictions, labels, shape)
    check_integer("labels", labels)
    check_count("num_anchors", num_anchors)
    check_count("max_per_class", max_per_class)
    check_share("hard_fraction", hard_fraction)
    images, positions, device = shape[0], shape[1] * shape[2], labels.device
    if images * positions == 0:
        index = torch.zeros(num_anchors, dtype=torch.int64, device=device)
        return index, torch.full_like(index, ignore_index)

    # Each image's pixels in order of label, hard before easy, then chance: two stable sorts.
    label = labels.to(torch.int64).flatten(1)
    easy = label == predictions.flatten(1)
    chance = position_hash(seed, images, positions, device) + easy.to(torch.int64) * 2**32
    shuffled = chance.argsort(dim=1)
    ordered, by_label = label.gather(1, shuffled).sort(dim=1, stable=True)
    pixel = shuffled.gather(1, by_label)
    hard = ~easy.gather(1, pixel).flatten()
    index = (pixel + torch.arange(images, device=device)[:, None] * positions).flatten()
    # A run is one class of one image.
    starts = torch.ones_like(ordered, dtype=torch.bool)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    starts, ordered = starts.flatten(), ordered.flatten()
    valid = ordered != ignore_index
    run = starts.cumsum(0) - 1
    place = torch.arange(run.numel(), device=device)
    rank = place - torch.where(starts, place, 0).cummax(0).values
    total = torch.zeros_like(run)
    num_hard = total.scatter_add(0, run, hard.to(torch.int64))[run]
    num_easy = total.scatter_add(0, run, (~hard).to(torch.int64))[run]

    quota = num_anchors // (starts & valid).sum().clamp(min=1)
    quota = quota.clamp(max=max_per_class)
    from_hard = (quota * hard_fraction + 1e-6).to(torch.int64)  # 0.29·100 is 28.999…
    from_hard = torch.minimum(num_hard, from_hard)
    from_easy = torch.minimum(num_easy, quota - from_hard)
    from_hard = torch.minimum(num_hard, quota - from_easy)
    chosen = valid & torch.where(hard, rank < from_hard, rank - num_hard < from_easy)
    return (
        compact(index, chosen, num_anchors, 0),
        compact(ordered, chosen, num_anchors, ignore_index),
    )
