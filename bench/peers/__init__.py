# SPDX-License-Identifier: Apache-2.0
"""What the ops are compared with: for each op a file with PEERS, by name.

A peer is a function with the arguments of the op (those of the bench's problem), written here from
the formula or calling the library that is named.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.problem import Settings


class Peer(NamedTuple):
    """One line of PEERS."""

    title: str  # as people know it
    source: str  # where the formula or the package comes from
    make: Callable[[], Callable[..., Any]]  # imports and compiles what it needs
    pair_bytes: float  # memory of forward and backward, per pair: whether it is tried at all
    why_not: Callable[[Settings], str] = lambda settings: ""  # "" where it can run
    compiled: bool = False  # its first call at a size is compilation


def similarity(rows: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """Return rows·keysᵀ/temperature [N, M] in float32 (float64 for float64).

    On a GPU the product is of the rows' dtype. A CPU without such instructions is a hundred times
    slower in 16 bits, so it takes float32 copies.
    """
    wide = torch.promote_types(rows.dtype, torch.float32)
    if rows.device.type == "cpu":
        rows, keys = rows.to(wide), keys.to(wide)
    return (rows @ keys.T).to(wide) / temperature


def compiled(function: Callable[..., Any]) -> Callable[[], Callable[..., Any]]:
    """Return how to make torch.compile of a function, for fixed shapes."""

    def make() -> Callable[..., Any]:
        torch._dynamo.reset()  # past its recompile_limit, a function runs eagerly without a word
        return torch.compile(function, dynamic=False)

    return make


def needs(package: str) -> str:
    """Return why a peer cannot run without its package, "" where that is installed."""
    return "" if find_spec(package) else f"{package} is not installed"
