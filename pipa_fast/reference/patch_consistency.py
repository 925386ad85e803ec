# SPDX-License-Identifier: Apache-2.0
"""Patch consistency as the equations have it: whole rows of the similarity matrix at a time.

With e_i = exp((a_i·p_i - 1)/τ), and Z_i = Σ exp((a_i·k - 1)/τ) over keys of other classes:

    L = Σ_i w_i log(1 + Z_i/e_i) / Σ_i w_i
    ∂L/∂a_i = w_i/Σw · Z_i/(Z_i + e_i) · (O_i/Z_i - p_i)/τ,   O_i = Σ exp((a_i·k - 1)/τ) k

PiPa (arXiv 2211.07609), equation 4. Everything is kept as logarithms, which makes any temperature
safe.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pipa_fast.reference._rows import told

ELEMENTS = 2**25  # of each temporary matrix: 128 MB in float32


def forward(
    anchors: Tensor,  # [N, D] unit rows
    positives: Tensor,  # [N, D]
    bank: Tensor,  # [M, D]
    anchor_labels: Tensor,  # [N] int64, negative: no anchor
    bank_labels: Tensor,  # [M] int64, negative: no key
    weights: Tensor | None,  # [N]
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Return the loss [] and its slope dL/danchors [N, D]."""
    dtype = torch.promote_types(anchors.dtype, torch.float32)
    a, p, k = (told(rows.to(dtype)) for rows in (anchors, positives, bank))
    weight = torch.ones_like(a[:, 0]) if weights is None else weights.to(dtype)
    weight = weight.masked_fill(anchor_labels < 0, 0)
    # Who has no say may hold anything, and 0 · nan would be nan.
    uncounted, absent = (weight == 0)[:, None], (bank_labels < 0)[:, None]
    a, p, k = a.masked_fill(uncounted, 0), p.masked_fill(uncounted, 0), k.masked_fill(absent, 0)
    total = weight.sum()
    weight = weight / torch.where(total > 0, total, 1)
    loss = a.new_zeros(())
    slope = torch.empty_like(a, memory_format=torch.contiguous_format)
    height = max(1, ELEMENTS // max(1, k.shape[0]))
    for start in range(0, a.shape[0], height):
        rows = slice(start, start + height)
        skipped = (anchor_labels[rows, None] == bank_labels) | (bank_labels < 0)
        s = ((a[rows] @ k.T - 1) / temperature).masked_fill(skipped, -torch.inf)
        log_z = s.logsumexp(1)
        margin = ((a[rows] * p[rows]).sum(1) - 1) / temperature - log_z
        loss += (weight[rows] * -F.logsigmoid(margin)).sum()
        # An anchor without negatives has log Z = -inf: its loss and sigma are 0, its mean unused.
        mean = (s - log_z[:, None]).exp().masked_fill(skipped, 0) @ k
        pull = weight[rows] * torch.sigmoid(-margin) / temperature
        slope[rows] = pull[:, None] * (mean - p[rows])
    return loss, slope


def backward(grad: Tensor, anchors: Tensor, slope: Tensor) -> Tensor:
    """Return dL/danchors [N, D] in their dtype; the forward sweep has found the slope already."""
    return (grad * slope).to(anchors.dtype)
