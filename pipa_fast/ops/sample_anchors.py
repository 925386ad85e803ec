# SPDX-License-Identifier: Apache-2.0
"""Draw anchors for pixel contrast, balanced over images, classes, and easy and hard pixels."""

import torch
import torch.nn.functional as F
from torch import Tensor

from pipa_fast.ops._checks import (
    check_count,
    check_label,
    check_rank,
    check_share,
    check_values,
    integers,
)
from pipa_fast.ops._random import check_seed, first_true, position_hash, spread
from pipa_fast.trace import traced


@traced("op:sample_anchors")
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
        labels: [B, H, W] integers in [-2**30, 2**30); `ignore_index` is never drawn.
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
        ValueError: a shape, dtype, device or number that does not fit; a label out of range (on
            CPU; elsewhere, and under torch.compile, an assertion on the device, which nobody waits
            for).

    Source: PiPa (arXiv 2211.07609), section 3.2, after ContrastiveSeg's hard anchor sampling.
    """
    check_rank("labels", labels, "B H W")
    shape = tuple(labels.shape)
    predictions = integers("predictions", predictions, labels, shape)
    narrow = labels.dtype.itemsize < 4
    labels = integers("labels", labels, labels, shape)
    check_seed(seed, shape[0])
    check_count("num_anchors", num_anchors)
    check_count("max_per_class", max_per_class)
    check_share("hard_fraction", hard_fraction)
    check_label("ignore_index", ignore_index)
    if not narrow:
        fits = (labels >= -(2**30)) & (labels < 2**30)
        check_values("labels", fits.all(), "in [-2**30, 2**30)")
    images, positions, device = shape[0], shape[1] * shape[2], labels.device
    if images * positions == 0:
        index = torch.zeros(num_anchors, dtype=torch.int64, device=device)
        return index, torch.full_like(index, ignore_index)

    # Each image's pixels in order of label, hard before easy, then chance: one sort.
    easy = labels == predictions
    key = (2 * labels + easy).flatten(1) * 2**32
    key, pixel = (key + position_hash(seed, images, positions, device)).sort(dim=1, stable=True)
    label, hard = key >> 33, (key & 2**32) == 0
    starts = torch.ones_like(hard)
    starts[:, 1:] = label[:, 1:] != label[:, :-1]
    # A run is one class of one image, and runs are few: where there are more than these, whatever
    # is ignored (once an image), there are more pairs than anchors, and none is drawn.
    total = images * positions
    runs = min(total, num_anchors + images + 1)
    begin = first_true(starts.flatten(), runs)
    end = torch.cat((begin[1:], begin.new_full((1,), total)))
    hard_before = F.pad(hard.flatten().cumsum(0), (1, 0))
    num_hard = hard_before[end] - hard_before[begin]
    num_easy = end - begin - num_hard
    run_label = label.flatten()[begin.clamp(max=total - 1)]
    present = (begin < total) & (run_label != ignore_index)

    quota = num_anchors // present.sum().clamp(min=1)
    quota = quota.clamp(max=max_per_class) * present
    from_hard = (quota * hard_fraction + 1e-6).to(torch.int64)  # 0.29·100 is 28.999…
    from_hard = torch.minimum(num_hard, from_hard)
    from_easy = torch.minimum(num_easy, quota - from_hard)
    from_hard = torch.minimum(num_hard, quota - from_easy)

    # Which run an anchor comes from, and its place there: easy ones stand behind all hard ones.
    run, place, real = spread(from_hard + from_easy, num_anchors)
    passed_over = torch.where(place < from_hard[run], 0, (num_hard - from_hard)[run])
    at = (begin[run] + place + passed_over).clamp(max=total - 1)
    index = pixel.flatten()[at] + at // positions * positions
    return torch.where(real, index, 0), torch.where(real, run_label[run], ignore_index)
