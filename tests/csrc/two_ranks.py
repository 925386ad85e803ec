# SPDX-License-Identifier: Apache-2.0
"""Rows of two ranks with what each knows of them, by the reference in float64."""

from collections.abc import Iterator
from types import ModuleType

import torch
from torch import Tensor

from pipa_fast.reference import pixel_contrast as reference
from pipa_fast.reference.pixel_contrast import Rows, Settings, anchor_weights

Known = tuple[Rows, Rows]  # as kernels keep them, and as the reference does


def two_ranks(x: Tensor, labels: Tensor, cut: int, settings: Settings) -> tuple[Known, Known]:
    """Return the first `cut` rows, and the others."""
    share, count = anchor_weights(labels, None, settings.ignore_index, torch.float64)
    wide = Rows(x.double(), labels, share / count.clamp(min=1))
    log_z = reference.denominators(wide, None, settings)
    _, slopes = reference.positives(wide._replace(z=log_z), None, settings)
    z = log_z.exp()
    wide = wide._replace(z=log_z, u=torch.where(z > 0, wide.w * slopes, 0))
    dtype = torch.promote_types(x.dtype, torch.float32)
    u = torch.where(z > 0, wide.w * slopes / z, 0)
    rows = Rows(x, labels, *(values.to(dtype) for values in (wide.w, z, u)))
    parts = [zip(*(t.split([cut, len(x) - cut]) for t in r), strict=True) for r in (rows, wide)]
    first, second = zip(*([Rows(*t) for t in part] for part in parts), strict=True)
    return first, second


def errors(
    backend: ModuleType, cases: tuple[Known, Known], settings: Settings
) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
    """Yield each sum of the first rank's rows with its own and with the other's.

    As (name, the backend's, the reference's in the rows' dtype, and in float64).
    """
    (rows, wide), (keys, wide_keys) = cases
    narrow, narrow_keys = (k._replace(z=w.z.to(k.z.dtype), u=w.u.to(k.u.dtype)) for k, w in cases)
    for own, same, true in ((None, None, None), (keys, narrow_keys, wide_keys)):
        found = backend.denominators(rows, own, settings)
        z = reference.denominators(narrow, same, settings).exp()
        yield "denominators", found, z, reference.denominators(wide, true, settings).exp()
        sums = (
            backend.positives(rows, own, settings),
            reference.positives(narrow, same, settings),
            reference.positives(wide, true, settings),
        )
        for name, values in zip(("losses", "slopes"), zip(*sums, strict=True), strict=True):
            yield name, *values
        pulls = backend.pulls(rows, own, settings)
        yield (
            "pulls",
            pulls,
            reference.pulls(narrow, same, settings),
            reference.pulls(wide, true, settings),
        )
