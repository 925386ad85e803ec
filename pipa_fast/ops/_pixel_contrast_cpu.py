# SPDX-License-Identifier: Apache-2.0
"""Pixel contrast by csrc/cpu: calls of its operators, whose checks want contiguous tensors."""

import torch
from torch import Tensor

from pipa_fast.ops._pixel_contrast_ranks import Pairs, factor_of_z
from pipa_fast.ops.backends import contiguous
from pipa_fast.reference.pixel_contrast import Rows, Settings


def forward(
    features: Tensor,  # [N, D]
    labels: Tensor,  # [N] int64
    weights: Tensor | None,  # [N] float32
    temperature: float,
    denominator: str,
    ignore_index: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss [], Z [N] and u [N]."""
    return torch.ops.pipa_fast_cpu.pixel_contrast_forward(
        *contiguous(features, labels, weights), temperature, denominator == "all", ignore_index, ""
    )


def backward(
    grad: Tensor,  # []
    features: Tensor,
    labels: Tensor,
    weights: Tensor | None,
    z: Tensor,
    u: Tensor,
    temperature: float,
    denominator: str,
    ignore_index: int,
) -> Tensor:
    """Return dL/dfeatures [N, D]."""
    rows = contiguous(features, labels, weights)
    return torch.ops.pipa_fast_cpu.pixel_contrast_backward(
        grad, *rows, z, u, temperature, denominator == "all", ignore_index, ""
    )


def pairs(isa: str = "") -> Pairs:
    """Return the sums over pairs with rows of other ranks, by an instruction set; "": the best."""

    def call(name: str, rows: Rows, saved: list[Tensor], keys: list[Tensor | None], how: Settings):
        operator = getattr(torch.ops.pipa_fast_cpu, f"pixel_contrast_{name}")
        settings = (how.temperature, how.denominator == "all", how.ignore_index, isa)
        return operator(*contiguous(rows.x, rows.labels, *saved, *keys), *settings)

    def denominators(rows: Rows, keys: Rows | None, settings: Settings) -> Tensor:
        return call("denominators", rows, [], _keys(keys), settings)

    def positives(rows: Rows, keys: Rows | None, settings: Settings) -> tuple[Tensor, Tensor]:
        assert rows.z is not None
        return call("positives", rows, [rows.z], _keys(keys), settings)

    def pulls(rows: Rows, keys: Rows | None, settings: Settings) -> Tensor:
        saved = None if keys is None else _saved(keys)
        return call("pulls", rows, [_saved(rows)], [*_keys(keys), saved], settings)

    return Pairs(denominators, torch.add, positives, factor_of_z, pulls, empty=0)


def _keys(keys: Rows | None) -> list[Tensor | None]:
    return [None, None] if keys is None else [keys.x, keys.labels]


def _saved(rows: Rows) -> Tensor:
    assert rows.z is not None and rows.u is not None
    return torch.stack((rows.z, rows.u, rows.w))
