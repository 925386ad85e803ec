# SPDX-License-Identifier: Apache-2.0
"""Pixel contrast as the equations have it: whole rows of the similarity matrix at a time.

With s_ij = (x_i·x_j - 1)/τ, P_i the other rows of i's class and a_i the anchors' weights, which
sum to one over the anchors with a non-empty P_i:

    L = Σ_i a_i mean_{j∈P_i} ℓ_ij
    negatives: ℓ_ij = softplus(log Z_i - s_ij),  Z_i = Σ exp(s_ij) over rows of other classes
    all:       ℓ_ij = log Z_i - s_ij,            Z_i = Σ exp(s_ij) over every other row

PiPa (arXiv 2211.07609), equation 2; "negatives" is the form of its released code. Everything is
kept as logarithms, which makes any temperature safe. Over a group, a rank's rows meet the rows of
all ranks. Only as many rows at a time are compared as fit in ELEMENTS.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pipa_fast.reference._ranks import gather_rows, place, sum_over_ranks
from pipa_fast.reference._rows import told

ELEMENTS = 2**25  # of each temporary matrix: 128 MB in float32


class Block(NamedTuple):
    """Some rows against all keys."""

    rows: slice  # which of this rank's rows
    similarity: Tensor  # [R, M] (x_i·x_j - 1)/τ
    positive: Tensor  # [R, M] bool: j in P_i
    summed: Tensor  # [R, M] bool: j counts in Z_i


def anchor_weights(
    labels: Tensor, weights: Tensor | None, ignore_index: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return a_i and |P_i| of each row [N], both as `dtype`; 0 for rows that are no anchors."""
    labels = labels.contiguous()
    ordered = labels.sort().values
    first, past = (torch.searchsorted(ordered, labels, right=right) for right in (False, True))
    positives = torch.where(labels == ignore_index, 0, past - first - 1)
    share = (positives > 0).to(dtype)
    if weights is not None:
        share = torch.where(positives > 0, weights.to(dtype), 0)
    total = share.sum()
    return share / torch.where(total > 0, total, 1), positives.to(dtype)


def _blocks(
    x: Tensor,
    labels: Tensor,
    keys: Tensor,
    key_labels: Tensor,
    offset: int,
    temperature: float,
    denominator: str,
    ignore_index: int,
) -> Iterator[Block]:
    height = max(1, ELEMENTS // max(1, keys.shape[0]))
    column = torch.arange(keys.shape[0], device=x.device)
    for start in range(0, x.shape[0], height):
        rows = slice(start, min(start + height, x.shape[0]))
        row_labels = labels[rows, None]
        other = column != column[offset + start : offset + rows.stop, None]
        both = (row_labels != ignore_index) & (key_labels != ignore_index) & other
        same = row_labels == key_labels
        summed = both & ~same if denominator == "negatives" else both
        yield Block(rows, (x[rows] @ keys.T - 1) / temperature, both & same, summed)


def forward(
    features: Tensor,  # [N, D] unit rows
    labels: Tensor,  # [N] int64
    weights: Tensor | None,  # [N]
    temperature: float,
    denominator: str,
    ignore_index: int,
    group: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss [], log Z [N] and u Z [N]: the group's loss, this rank's rows."""
    dtype = torch.promote_types(features.dtype, torch.float32)
    features = told(features)
    (keys, key_labels, key_weights), offset = gather_rows(group, features, labels, weights)
    assert keys is not None and key_labels is not None
    share, positives = anchor_weights(key_labels, key_weights, ignore_index, dtype)
    x, own = features.to(dtype), slice(offset, offset + features.shape[0])
    loss = x.new_zeros(())
    log_z, u = x.new_empty(x.shape[0]), share[own].clone()
    for block in _blocks(
        x, labels, keys.to(dtype), key_labels, offset, temperature, denominator, ignore_index
    ):
        s, rows = block.similarity, block.rows
        z = s.masked_fill(~block.summed, -torch.inf).logsumexp(1)
        log_z[rows] = z
        pair = share[own][rows] / positives[own][rows].clamp(min=1)
        if denominator == "negatives":
            # softplus itself is off by 2e-9 where its argument is large
            term = -F.logsigmoid(s - z[:, None])
            sigma = torch.sigmoid(z[:, None] - s)
            u[rows] = pair * sigma.masked_fill(~block.positive, 0).sum(1)
        else:
            term = z[:, None] - s
        loss += (pair * term.masked_fill(~block.positive, 0).sum(1)).sum()
    return sum_over_ranks(loss, group), log_z, u


def backward(
    grad: Tensor,  # []
    features: Tensor,
    labels: Tensor,
    weights: Tensor | None,
    log_z: Tensor,
    u: Tensor,
    temperature: float,
    denominator: str,
    ignore_index: int,
    group: str,
) -> Tensor:
    """Return dL/dfeatures [N, D], times the number of ranks, so that DDP's mean is exact.

    The gradient is G X/τ with a symmetric G. A row is differentiated as an anchor and as what
    other anchors, remote ones too, are compared with.
    """
    dtype = log_z.dtype
    gathered, offset = gather_rows(group, features, labels, weights, log_z, u)
    keys, key_labels, key_weights, key_z, key_u = gathered
    assert keys is not None and key_labels is not None and key_z is not None and key_u is not None
    share, positives = anchor_weights(key_labels, key_weights, ignore_index, dtype)
    pair = share / positives.clamp(min=1)
    x, keys, own = features.to(dtype), keys.to(dtype), slice(offset, offset + features.shape[0])
    keys = keys.masked_fill((key_labels == ignore_index)[:, None], 0)  # 0 · nan would be nan
    gradient = torch.empty_like(x, memory_format=torch.contiguous_format)
    for block in _blocks(
        x, labels, keys, key_labels, offset, temperature, denominator, ignore_index
    ):
        s, rows = block.similarity, block.rows
        z, w = log_z[rows, None], pair[own][rows, None]
        push = u[rows, None] * (s - z).exp() + key_u * (s - key_z).exp()
        if denominator == "negatives":
            pull = w * torch.sigmoid(z - s) + pair * torch.sigmoid(key_z - s)
        else:
            pull = w + pair
        # masked_fill, not a product: what is masked may be infinite
        g = push.masked_fill(~block.summed, 0) - pull.masked_fill(~block.positive, 0)
        gradient[rows] = g @ keys
    scale = grad.to(dtype) * (place(group)[1] / temperature)
    return (gradient * scale).to(features.dtype)
