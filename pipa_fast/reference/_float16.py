# SPDX-License-Identifier: Apache-2.0
"""How kernels keep the entries of pixel contrast's G, which they round, in float16's range."""

import math

import torch
from torch import Tensor

from pipa_fast.reference.pixel_contrast import Rows


def largest_share(temperature: float) -> float:
    """Return what the largest share of an anchor is scaled to, a power of two.

    An entry e_ij (u_i + u_j) of rows that take part is at most twice that, and float16 ends at
    2^16. Its u, up to the share over Z, with Z >= exp(-2 / temperature), must not leave float32.
    """
    return 2.0 ** min(14, math.floor(126 - 2 / (temperature * math.log(2))))


def gain(rows: Rows, keys: Rows, temperature: float) -> Tensor:
    """Return by what float16 entries of G are multiplied []; 1 of rows in other dtypes.

    An entry is at most twice the largest share of an anchor, and u z at most the anchor's own.
    """
    one = torch.ones((), device=rows.x.device)
    if rows.x.dtype != torch.float16:
        return one
    assert rows.z is not None and rows.u is not None and keys.z is not None and keys.u is not None
    known = torch.cat((rows.w, keys.w, rows.u * rows.z, keys.u * keys.z))
    largest = known.amax()
    return torch.where(largest > 0, largest_share(temperature) / largest, one)
