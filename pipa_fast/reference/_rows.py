# SPDX-License-Identifier: Apache-2.0
"""Rows of features that are no numbers."""

import torch
from torch import Tensor


def told(rows: Tensor) -> Tensor:
    """Return rows [N, D] where one that holds inf is nan throughout.

    An infinite cosine may have an exponential of 0, and would leave the loss as if nothing were.
    """
    return rows.masked_fill(~rows.isfinite().all(1, keepdim=True), torch.nan)
