# SPDX-License-Identifier: Apache-2.0
"""Rows of features: those that are no numbers, and the order of their classes."""

import torch
from torch import Tensor

DEAD = 2**63 - 1
"""The sort key of rows that count for nothing: the largest."""


def class_keys(labels: Tensor, ignore_index: int) -> Tensor:
    """Return a key for each label [N] int64, by which kernels sort: DEAD for the ignored alone.

    The sum wraps, which keeps labels that differ apart.
    """
    return labels + ((DEAD - ignore_index + 2**63) % 2**64 - 2**63)


def told(rows: Tensor) -> Tensor:
    """Return rows [N, D] where one that holds inf is nan throughout.

    An infinite cosine may have an exponential of 0, and would leave the loss as if nothing were.
    """
    return rows.masked_fill(~rows.isfinite().all(1, keepdim=True), torch.nan)
