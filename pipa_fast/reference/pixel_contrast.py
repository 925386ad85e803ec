# SPDX-License-Identifier: Apache-2.0
"""Pixel contrast as the equations have it: whole rows of the similarity matrix at a time.

With s_ij = (x_i·x_j - 1)/τ, P_i the other rows of i's class and a_i the anchors' weights, which
sum to one over the anchors with a non-empty P_i:

    L = Σ_i a_i mean_{j∈P_i} ℓ_ij
    negatives: ℓ_ij = softplus(log Z_i - s_ij),  Z_i = Σ exp(s_ij) over rows of other classes
    all:       ℓ_ij = log Z_i - s_ij,            Z_i = Σ exp(s_ij) over every other row

PiPa (arXiv 2211.07609), equation 2; "negatives" is the form of its released code. Everything is
kept as logarithms, which makes any temperature safe. Only as many rows at a time are compared as
fit in ELEMENTS. Where the rows are some of many, as on one of several ranks, `denominators`,
`positives` and `pulls` are what pairs with some of the others add.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pipa_fast.reference._rows import told

ELEMENTS = 2**25  # of each temporary matrix: 128 MB in float32


class Settings(NamedTuple):
    """How rows are contrasted, as ops.pixel_contrast has it."""

    temperature: float
    denominator: str
    ignore_index: int


class Rows(NamedTuple):
    """Rows [N, D] and what is known of each [N]."""

    x: Tensor
    labels: Tensor
    w: Tensor  # a_i / |P_i|
    z: Tensor | None = None  # here log Z; kernels keep Z
    u: Tensor | None = None  # here u Z; kernels keep u


class Block(NamedTuple):
    """Some rows against all keys."""

    rows: slice
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


def _wide(rows: Rows) -> Rows:
    return rows._replace(x=told(rows.x.to(torch.promote_types(rows.x.dtype, torch.float32))))


def _blocks(rows: Rows, keys: Rows | None, settings: Settings) -> Iterator[Block]:
    """Yield wide rows in blocks, against wide keys; None are the rows themselves."""
    temperature, denominator, ignore_index = settings
    x, labels = rows.x, rows.labels
    others = rows if keys is None else keys
    height = max(1, ELEMENTS // max(1, others.x.shape[0]))
    column = torch.arange(others.x.shape[0], device=x.device)
    for start in range(0, x.shape[0], height):
        part = slice(start, min(start + height, x.shape[0]))
        both = (labels[part, None] != ignore_index) & (others.labels != ignore_index)
        if keys is None:
            both &= column != column[part, None]
        same = labels[part, None] == others.labels
        summed = both & ~same if denominator == "negatives" else both
        yield Block(part, (x[part] @ others.x.T - 1) / temperature, both & same, summed)


def _log_z(block: Block) -> Tensor:
    return block.similarity.masked_fill(~block.summed, -torch.inf).logsumexp(1)


def _positives(block: Block, z: Tensor, denominator: str) -> tuple[Tensor, Tensor]:
    """Return each row's sums over its positives of ℓ_ij and of ∂ℓ_ij/∂log Z_i [R]."""
    s, z = block.similarity, z[:, None]
    if denominator == "all":
        term, slope = z - s, torch.ones_like(s)
    else:
        # softplus itself is off by 2e-9 where its argument is large
        term, slope = -F.logsigmoid(s - z), torch.sigmoid(z - s)
    losses, slopes = (t.masked_fill(~block.positive, 0).sum(1) for t in (term, slope))
    return losses, slopes


def denominators(rows: Rows, keys: Rows | None, settings: Settings) -> Tensor:
    """Return log Σ e_ij [N] over the keys that count in Z; None are the rows themselves."""
    rows, keys = _wide(rows), keys and _wide(keys)
    found = [_log_z(block) for block in _blocks(rows, keys, settings)]
    return torch.cat([rows.x.new_empty(0), *found])


def positives(rows: Rows, keys: Rows | None, settings: Settings) -> tuple[Tensor, Tensor]:
    """Return the sums of losses of positives among the keys, and of their slopes by log Z [N]."""
    rows, keys = _wide(rows), keys and _wide(keys)
    assert rows.z is not None
    sums = torch.zeros_like(rows.z), torch.zeros_like(rows.z)
    for block in _blocks(rows, keys, settings):
        found = _positives(block, rows.z[block.rows], settings.denominator)
        for out, values in zip(sums, found, strict=True):
            out[block.rows] = values
    return sums


def pulls(rows: Rows, keys: Rows | None, settings: Settings) -> Tensor:
    """Return G X [N, D] over the keys.

    G is symmetric: a row is differentiated as an anchor and as what others are compared with.
    """
    rows, keys = _wide(rows), keys and _wide(keys)
    others = rows if keys is None else keys
    assert rows.z is not None and rows.u is not None
    assert others.z is not None and others.u is not None
    ignored = (others.labels == settings.ignore_index)[:, None]
    x = others.x.masked_fill(ignored, 0)  # 0 · nan would be nan
    gradient = x.new_zeros(rows.x.shape)
    for block in _blocks(rows, keys, settings):
        s = block.similarity
        z, u, w = (t[block.rows, None] for t in (rows.z, rows.u, rows.w))
        push = u * (s - z).exp() + others.u * (s - others.z).exp()
        if settings.denominator == "negatives":
            pull = w * torch.sigmoid(z - s) + others.w * torch.sigmoid(others.z - s)
        else:
            pull = w + others.w
        # masked_fill, not a product: what is masked may be infinite
        g = push.masked_fill(~block.summed, 0) - pull.masked_fill(~block.positive, 0)
        gradient[block.rows] = g @ x
    return gradient


def forward(
    features: Tensor,  # [N, D] unit rows
    labels: Tensor,  # [N] int64
    weights: Tensor | None,  # [N]
    temperature: float,
    denominator: str,
    ignore_index: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss [], log Z [N] and u Z [N]."""
    dtype = torch.promote_types(features.dtype, torch.float32)
    share, positives = anchor_weights(labels, weights, ignore_index, dtype)
    w = share / positives.clamp(min=1)
    loss, log_z, u = w.new_zeros(()), torch.empty_like(w), torch.empty_like(w)
    rows, settings = Rows(features, labels, w), Settings(temperature, denominator, ignore_index)
    for block in _blocks(_wide(rows), None, settings):
        log_z[block.rows] = z = _log_z(block)
        losses, slopes = _positives(block, z, denominator)
        loss += (w[block.rows] * losses).sum()
        u[block.rows] = w[block.rows] * slopes
    return loss, log_z, u


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
) -> Tensor:
    """Return dL/dfeatures [N, D]."""
    share, positives = anchor_weights(labels, weights, ignore_index, log_z.dtype)
    rows = Rows(features, labels, share / positives.clamp(min=1), log_z, u)
    gradient = pulls(rows, None, Settings(temperature, denominator, ignore_index))
    return (gradient * (grad.to(log_z.dtype) / temperature)).to(features.dtype)
