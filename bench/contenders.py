# SPDX-License-Identifier: Apache-2.0
"""Who takes part in a bench: the op's backends, and its peers."""

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import torch

from bench.peers import Peer
from bench.problem import Settings
from pipa_fast import ops

TITLES = {
    "cpu": "pipa_fast, C++",
    "triton": "pipa_fast, Triton",
    "cuda": "pipa_fast, CUDA C++",
    "reference": "pipa_fast, reference",
}


class Contender(NamedTuple):
    """One that takes part. `make()` gives a function of the op's arguments."""

    name: str
    title: str
    ours: bool
    make: Callable[[], Callable[..., Any]]
    pair_bytes: float = 0
    why_not: Callable[[Settings], str] = lambda settings: ""
    compiled: bool = False


def peers_of(op: str) -> dict[str, Peer]:
    """Return the op's peers by name."""
    return import_module(f"bench.peers.{op}").PEERS


def backends(op: str, device: torch.device) -> list[str]:
    """Return our backends that can run an op; of an op that leaves no choice, the one it takes."""
    if no_op := own_functions(op):
        return list(no_op)
    runnable = ops.backends(op, device)
    return runnable if leaves_choice(op) else runnable[:1]


def own_functions(op: str) -> dict[str, Callable[..., Any]]:
    """Return our functions for what is no op, by name; {} for an op."""
    return getattr(import_module(f"bench.{op}"), "OURS", {})


def leaves_choice(op: str) -> bool:
    """Return whether an op's caller may name the backend."""
    return "backend" in inspect.signature(getattr(ops, op)).parameters


def backend(op: str, name: str) -> Contender:
    """Return a backend of ours."""
    if no_op := own_functions(op):
        return Contender(name, f"pipa_fast, {name}", True, lambda: no_op[name])
    function, title = getattr(ops, op), TITLES.get(name, name)
    if leaves_choice(op):
        function = partial(function, backend=name)
    elif name == "reference":
        title = "pipa_fast, torch"  # the op itself; its reference is another function
    return Contender(name, title, True, lambda: function)


def contenders(
    op: str,
    device: torch.device,
    ours: Sequence[str] | None = None,
    peers: Sequence[str] | None = None,
) -> list[Contender]:
    """Return the contenders named; None: every backend that can run here, every peer.

    Raises ValueError for a name that is not known or cannot run on the device.
    """
    runnable, known = backends(op, device), peers_of(op)
    for what, names, there in (("backends", ours, runnable), ("peers", peers, known)):
        unknown = sorted(set(names or ()) - set(there))
        if unknown:
            raise ValueError(f"{what} of {op} here: {', '.join(there)}; got {', '.join(unknown)}")
    found = [backend(op, name) for name in (runnable if ours is None else ours)]
    for name in known if peers is None else peers:
        peer = known[name]
        found.append(
            Contender(
                name, peer.title, False, peer.make, peer.pair_bytes, peer.why_not, peer.compiled
            )
        )
    return found


def find(op: str, device: torch.device, name: str) -> Contender:
    """Return one contender by its name."""
    return next(c for c in contenders(op, device) if c.name == name)
