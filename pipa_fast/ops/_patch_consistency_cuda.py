# SPDX-License-Identifier: Apache-2.0
"""Patch consistency by csrc/cuda: what happens to a row at a time around the kernel.

Nothing here waits for the device.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pipa_fast.ops._cuda import KERNELS, LOG2E, TF32, by_class, number
from pipa_fast.reference._rows import DEAD

SHIFT, OCTAVES = 15, 29
"""e times 2^15 fills float16's range, whose octaves are those of e while 2 / temperature <= 20."""
PROGRAMS = 264  # that are wanted: two for each of 132 multiprocessors
MAX_SPLITS = 4  # of the keys, each with sums of its own: what bounds the memory
BLOCK = 64  # anchors of a program, about


def _sort(rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return rows by class, negative labels last, their keys, their order and how many count."""
    keys, order, live = by_class(torch.where(labels < 0, DEAD, labels))
    return F.pad(rows[order], (0, -rows.shape[1] % 8)), keys, order, live


def forward(
    anchors: Tensor,  # [N, D] unit rows
    positives: Tensor,  # [N, D]
    bank: Tensor,  # [M, D]
    anchor_labels: Tensor,  # [N] int64, negative: no anchor
    bank_labels: Tensor,  # [M] int64, negative: no key
    weights: Tensor | None,  # [N]
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Return the loss [] and its slope dL/danchors [N, D] float32."""
    n, d = anchors.shape
    if n == 0:
        return anchors.new_zeros((), dtype=torch.float32), anchors.new_zeros((0, d)).float()
    if weights is not None:
        anchor_labels = torch.where(weights == 0, -1, anchor_labels)
    a, a_keys, order, live = _sort(anchors, anchor_labels)
    counts = (a_keys != DEAD)[:, None]
    k, k_keys, _, live_keys = _sort(bank, bank_labels)
    how, shift = number(a.dtype), SHIFT if a.dtype == torch.float16 else 0
    if a.dtype == torch.float16 and 2 / temperature * LOG2E > OCTAVES:
        # TF32 holds each number of float16, and as small a one as float32 does.
        a, k, how, shift = a.float(), k.float(), TF32, 0
    first = torch.searchsorted(k_keys, a_keys, out_int32=True)
    past = torch.searchsorted(k_keys, a_keys, right=True, out_int32=True)
    splits = max(1, min(MAX_SPLITS, PROGRAMS * BLOCK // n))
    z, o = KERNELS.patch_consistency_sums(
        a, k, first, past, live, live_keys, LOG2E / temperature, shift, how, splits
    )
    z, o = z.sum(0), o.sum(0) if splits > 1 else o[0]

    # What anchors that do not count hold may be NaN.
    a, p = torch.where(counts, a[:, :d], 0), torch.where(counts, positives[order].float(), 0)
    weight = counts[:, 0].float()
    if weights is not None:
        weight = torch.where(counts[:, 0], weights[order].float(), 0)
    total = weight.sum()
    weight = weight / torch.where(total > 0, total, 1)
    log_z = z.log() - shift * math.log(2)  # without negatives -inf: loss and sigma are 0
    margin = ((a * p).sum(1) - 1) / temperature - log_z
    loss = (weight * -F.logsigmoid(margin)).sum()
    pull = weight * torch.sigmoid(-margin) / temperature
    mean = o[:, :d].div_(torch.where(z > 0, z, 1)[:, None]).sub_(p).mul_(pull[:, None])
    slope = torch.empty_like(p)
    slope[order] = mean
    # Infinite cosines may leave no sum, or no loss: what is not finite makes the loss NaN.
    return loss + 0 * (a.sum(dtype=torch.float32) + mean.sum()), slope
