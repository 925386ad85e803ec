# SPDX-License-Identifier: Apache-2.0
"""The learning rate as a function of the iteration."""


def learning_rate_factor(
    iteration: int,
    iterations: int,
    *,
    warmup: int = 0,
    warmup_ratio: float = 1e-6,
    power: float = 1.0,
) -> float:
    """Return what multiplies the base rate at `iteration` (0-based) of `iterations`.

    Polynomial decay (1 - iteration/iterations)^power; over the first `warmup` iterations times a
    line from `warmup_ratio` to 1 (DAFormer's `configs/_base_/schedules/poly10warm.py`).
    """
    factor = (1 - iteration / iterations) ** power
    if iteration < warmup:
        factor *= 1 - (1 - iteration / warmup) * (1 - warmup_ratio)
    return factor
