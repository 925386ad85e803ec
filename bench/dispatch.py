# SPDX-License-Identifier: Apache-2.0
"""Counts what a GPU would feel and a CPU does not: operators called, and waits for their results.

Every operator is a kernel to launch, some microseconds each, or a few. A wait is one whose result
the host has to see before it can go on (a number, or how large the next tensor is): on a GPU the
queue runs empty there.
"""

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# .item(), int(tensor), `if tensor`; and outputs whose size depends on values
WAITS = {
    "_local_scalar_dense",
    "is_nonzero",
    "equal",
    "nonzero",
    "masked_select",
    "repeat_interleave",  # without output_size; with it, it is another operator
    "bincount",
    "unique_dim",
    "unique_consecutive",
    "_unique",
    "_unique2",
}
VIEWS = {"view", "_unsafe_view", "expand", "permute", "transpose", "t", "select", "slice", "split"}
VIEWS |= {"squeeze", "unsqueeze", "unbind", "as_strided", "alias", "detach", "unfold"}


class Dispatched(TorchDispatchMode):
    """Counts, while it is entered, the operators (views not) and the waits, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict | None = None
    ) -> Any:
        name = func.name().split("::")[1].split(".")[0]
        self.operators[name] += name not in VIEWS
        self.waits[name] += name in WAITS or by_mask(name, args)
        return func(*args, **(kwargs or {}))


def by_mask(name: str, args: tuple[Any, ...]) -> bool:
    """Return whether an operator indexes with a mask: it looks for what is True."""
    if name not in ("index", "index_put", "index_put_", "_index_put_impl_"):
        return False
    masks = (torch.bool, torch.uint8)
    return any(isinstance(index, Tensor) and index.dtype in masks for index in args[1])
