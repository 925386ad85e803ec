# SPDX-License-Identifier: Apache-2.0
"""Named ranges around phases and ops, for Nsight (NVTX) and torch.profiler alike."""

import contextlib
from collections.abc import Iterator

import nvtx
import torch


@contextlib.contextmanager
def trace_range(name: str) -> Iterator[None]:
    """Mark the enclosed work as `name`; next to nothing where no profiler listens."""
    if torch.compiler.is_compiling():
        yield
        return
    with nvtx.annotate(name, domain="pipa_fast"), torch.profiler.record_function(name):
        yield
