# SPDX-License-Identifier: Apache-2.0
"""What the ops' CUDA C++ backends share: the compiled kernels, and how their numbers are named."""

import math
from typing import Any

import torch
from torch import Tensor

from pipa_fast.reference._rows import DEAD

LOG2E = math.log2(math.e)
KERNELS: Any = torch.ops.pipa_fast_cuda
"""Operators that csrc/cuda/bindings.cpp registers."""

# Number of csrc/cuda/limits.h
BFLOAT16, FLOAT16, TF32, TF32X3 = range(4)


def by_class(keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return keys [N] in order, the order int64, and [1] int32 how many are not DEAD."""
    ordered, order = torch.sort(keys, stable=True)
    live = torch.searchsorted(ordered, ordered.new_full((1,), DEAD), out_int32=True)
    return ordered, order, live


def number(dtype: torch.dtype) -> int:
    """Return how rows of a dtype are multiplied: float32 in TF32 exactly where torch does so."""
    if dtype == torch.float32:
        return TF32 if torch.backends.cuda.matmul.fp32_precision == "tf32" else TF32X3
    return BFLOAT16 if dtype == torch.bfloat16 else FLOAT16
