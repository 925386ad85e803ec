# SPDX-License-Identifier: Apache-2.0
"""Random numbers as a function of (seed, image, position): no state, no host, any order."""

import torch
from torch import Tensor

from pipa_fast.checks import require
from pipa_fast.ops._checks import check_integer


def _signed(constant: int) -> int:
    return constant - 2**64 if constant >= 2**63 else constant


# splitmix64 (Steele, Lea and Flood, 2014): the golden ratio as increment, then the finaliser.
_STEP_HIGH, _STEP_LOW = 0x9E3779B9, 0x7F4A7C15
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)


def _shift(bits: Tensor, count: int) -> Tensor:
    """Shift right by `count`, filling with zeros (torch fills with the sign)."""
    return (bits >> count) & ((1 << (64 - count)) - 1)


def _steps(count: Tensor) -> Tensor:
    """Multiply numbers in [0, 2**31) by the increment; the result wraps.

    Masked, since torch.compile makes C++ of an arange's multiples by a loop's index, with steps of
    32 bits; by halves, since there the overflow of the whole would be undefined.
    """
    count = count & (2**31 - 1)
    return ((count * _STEP_HIGH) << 32) + count * _STEP_LOW


def _scramble(bits: Tensor) -> Tensor:
    """Spread every bit of int64s over all of them; products wrap."""
    bits = (bits ^ _shift(bits, 30)) * _FIRST
    bits = (bits ^ _shift(bits, 27)) * _SECOND
    return bits ^ _shift(bits, 31)


def check_seed(seed: int | Tensor, images: int) -> None:
    """A seed is an int, or an int64 tensor [] or [images]."""
    if isinstance(seed, Tensor):
        check_integer("seed", seed)
        require(
            seed.ndim == 0 or tuple(seed.shape) == (images,),
            "seed",
            tuple(seed.shape),
            f"an int, or a tensor of shape [] or [{images}]",
        )
    else:
        whole = isinstance(seed, int) and not isinstance(seed, bool)
        require(whole, "seed", type(seed), "an int or an int64 tensor")


def position_hash(seed: int | Tensor, images: int, positions: int, device: torch.device) -> Tensor:
    """Return [images, positions] int64 in [0, 2**32), uniform and independent.

    `seed` is an int, an int64 tensor [] for all images, or [images] with one for each: a seed made
    from an image's own number makes its draw independent of the batch it comes in.
    """
    place = torch.arange(images, device=device)
    if isinstance(seed, Tensor):
        base = seed.to(device=device, dtype=torch.int64)
        place = torch.zeros_like(place) if seed.ndim else place
    else:
        base = torch.full((), _signed(seed % 2**64), dtype=torch.int64, device=device)
    own = _scramble(_scramble(base) + _steps(place + 1))
    position = torch.arange(1, positions + 1, device=device)
    return _shift(_scramble(own[:, None] + _steps(position)), 32)


def first_true(chosen: Tensor, size: int) -> Tensor:
    """Return where `chosen` [N] is True: the first `size` places, in order, then N.

    The result's shape depends on no value, unlike that of nonzero.
    """
    count = chosen.shape[0]
    slot = torch.where(chosen, chosen.cumsum(0) - 1, size).clamp(max=size)  # size takes the others
    places = torch.arange(count, device=chosen.device)
    return places.new_full((size + 1,), count).scatter_(0, slot, places)[:size]


def spread(counts: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Fill `size` slots from groups, `counts` [G] of each, in order; sum(counts) <= size, G > 0.

    Returns each slot's group, its place in that group, and whether it is filled, all [size].
    """
    until = counts.cumsum(0)
    slot = torch.arange(size, device=counts.device)
    group = torch.searchsorted(until, slot, right=True).clamp(max=counts.shape[0] - 1)
    return group, slot - (until - counts)[group], slot < until[-1]
