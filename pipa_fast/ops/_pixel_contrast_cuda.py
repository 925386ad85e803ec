# SPDX-License-Identifier: Apache-2.0
"""Pixel contrast by csrc/cuda: what happens to N numbers at a time around the kernels.

The kernels compute what depends on pairs of rows. Nothing here waits for the device.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pipa_fast.ops._cuda import DEAD, KERNELS, LOG2E, by_class, number

PADDING = 128  # kPadding of csrc/cuda/limits.h
HALF_RANGE = 2.0**14  # G/2 is at most 1 of the largest weight, and float16 ends at 2^16


class Sorted(NamedTuple):
    """Rows by class, those that take no part last; [padded] but `x` and `order`."""

    x: Tensor  # [N, D padded to a multiple of 8]
    order: Tensor  # [N] int64, the row that each was
    first: Tensor  # int32, where its class begins
    past: Tensor  # int32, and ends; 0 where it takes no part
    live: Tensor  # [1] int32, rows that take part
    positives: Tensor  # float32
    share: Tensor  # float32, an anchor's weight
    pair: Tensor  # float32, and that for each of its positives


def _wrapped(key: int) -> int:
    """Return a number as int64 holds it: a sum that wraps gives ignored rows the largest key."""
    return (key + 2**63) % 2**64 - 2**63


def _sort(features: Tensor, labels: Tensor, weights: Tensor | None, ignore_index: int) -> Sorted:
    n, d = features.shape
    keys, order, live = by_class(labels + _wrapped(DEAD - ignore_index))
    first = torch.searchsorted(keys, keys, out_int32=True)
    past = torch.searchsorted(keys, keys, right=True, out_int32=True)
    past = torch.where(keys == DEAD, 0, past)
    positives = (past - first - 1).clamp(min=0).float()
    share = (positives > 0).float()
    if weights is not None:
        share = share * weights[order]
    rows = torch.stack((positives, share, share / positives.clamp(min=1)))
    end = -n % PADDING
    begin, stop = F.pad(torch.stack((first, past)), (0, end)).unbind()
    positives, share, pair = F.pad(rows, (0, end)).unbind()
    x = F.pad(features[order], (0, -d % 8))
    return Sorted(x, order, begin, stop, live, positives, share, pair)


def _problem(rows: Sorted, temperature: float, denominator: str) -> tuple[object, ...]:
    scale = LOG2E / temperature
    kind = number(rows.x.dtype)
    return rows.x, rows.first, rows.past, rows.live, denominator == "all", scale, kind


def forward(
    features: Tensor,  # [N, D]
    labels: Tensor,  # [N] int64
    weights: Tensor | None,  # [N] float32
    temperature: float,
    denominator: str,
    ignore_index: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss [], Z [N], and u [N] times the sum of the anchors' weights."""
    if features.shape[0] == 0:
        nothing = features.new_zeros(0, dtype=torch.float32)
        return nothing.sum(), nothing, nothing.clone()
    rows = _sort(features, labels, weights, ignore_index)
    problem = _problem(rows, temperature, denominator)
    z = KERNELS.pixel_contrast_denominators(*problem).sum(0)
    losses, slopes = KERNELS.pixel_contrast_positives(*problem, z).sum(0)
    anchors = rows.share > 0
    if denominator == "all":
        # log Z - mean (s - 1) / τ; an anchor has a positive, so that its Z is above 0
        mean = (losses / rows.positives.clamp(min=1) - 1) / temperature
        terms = rows.share * (torch.where(anchors, z, 1).log() - mean)
        u = rows.share / torch.where(anchors, z, 1)
    else:
        terms, u = rows.pair * losses / LOG2E, rows.pair * slopes
    loss = torch.where(anchors, terms, 0).sum() / rows.share.sum().clamp(min=1e-38)
    saved = z.new_empty((2, len(rows.order)))
    live = rows.past > 0
    saved[:, rows.order] = torch.where(live, torch.stack((z, u)), 0)[:, : len(rows.order)]
    return loss, saved[0], saved[1]


def backward(
    grad: Tensor,  # []
    features: Tensor,
    labels: Tensor,
    weights: Tensor | None,
    z: Tensor,
    u: Tensor,
    temperature: float,
    denominator: str,
    ignore_index: int,
) -> Tensor:
    """Return dL/dfeatures [N, D]."""
    n, d = features.shape
    if n == 0:
        return features.new_empty((n, d))
    rows = _sort(features, labels, weights, ignore_index)
    z, u = F.pad(torch.stack((z, u))[:, rows.order], (0, -n % PADDING)).unbind()
    pair, total = rows.pair, rows.share.sum()
    scale = total.new_ones(())
    if features.dtype == torch.float16:
        largest = rows.share.amax()
        scale = torch.where(largest > 0, HALF_RANGE / largest, 0.0)
    factor = torch.where(total > 0, grad.float() / (temperature * total * scale), 0.0)
    gradient = KERNELS.pixel_contrast_gradient(
        *_problem(rows, temperature, denominator), z, u * scale, pair * scale, rows.order, factor
    )
    return gradient[:, :d].contiguous() if gradient.shape[1] != d else gradient
