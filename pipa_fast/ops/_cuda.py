# SPDX-License-Identifier: Apache-2.0
"""What the ops' CUDA C++ backends share: the compiled kernels, and how their numbers are named."""

import math
from typing import Any

import torch

LOG2E = math.log2(math.e)
DEAD = 2**63 - 1
"""The sort key of rows that count for nothing: the largest."""
KERNELS: Any = torch.ops.pipa_fast_cuda
"""Operators that csrc/cuda/bindings.cpp registers."""

# Number of csrc/cuda/tiles.h
BFLOAT16, FLOAT16, TF32, TF32X3 = range(4)


def number(dtype: torch.dtype) -> int:
    """Return how rows of a dtype are multiplied: float32 in TF32 exactly where torch does so."""
    if dtype == torch.float32:
        return TF32 if torch.backends.cuda.matmul.fp32_precision == "tf32" else TF32X3
    return BFLOAT16 if dtype == torch.bfloat16 else FLOAT16
