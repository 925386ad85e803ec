# SPDX-License-Identifier: Apache-2.0
"""How results are compared with float64's, and how a bad argument has to be told."""

import importlib
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pipa_fast import ops

EPS = torch.finfo(torch.float32).eps
# What a gradient is rounded to on its way out; float16 has subnormals in steps of 6e-8.
ROUNDED = {
    torch.float32: (0.0, 0.0),
    torch.float64: (0.0, 0.0),
    torch.bfloat16: (2.0**-8, 0.0),
    torch.float16: (2.0**-11, 6e-8),
}


def ways(op: str) -> list[str]:
    """Return who can compute an op here: its backends, and each instruction set of the C++ one."""
    found = ops.backends(op, "cpu")
    if "cpu" in found:
        features = importlib.import_module("pipa_fast._host").cpu_features()
        found += [isa for isa, here in features.items() if here]
    return found


def refused(argument: str, call: Callable[[], Any]) -> None:
    """A call must raise a ValueError that names the argument."""
    with pytest.raises(ValueError, match=rf"\b{re.escape(argument)}\b"):
        call()


def assert_value(found: Tensor, truth: Tensor, steepness: float) -> None:
    """A loss [] within float32's rounding of arguments as large as `steepness`, 1/temperature."""
    assert math.isfinite(truth), "the oracle is not finite"
    allowed = (1e-5 + 4 * EPS * steepness) * abs(float(truth)) + 1e-6 + 4 * EPS * steepness
    assert abs(float(found) - float(truth)) <= allowed, (float(found), float(truth), allowed)


def assert_gradient(found: Tensor, truth: Tensor, steepness: float, share: float) -> None:
    """A gradient's elements and norm; `share` is the largest weight that an anchor has.

    Terms as large as share * steepness may cancel, and what they err by stays.
    """
    assert found.shape == truth.shape
    if not truth.numel():
        return
    assert found.isfinite().all()
    step, smallest = ROUNDED[found.dtype]
    wide = found.double()
    relative = 2e-5 + 4 * EPS * steepness + step
    floor = 8 * EPS * (1 + steepness) * steepness * share + smallest
    difference = (wide - truth).abs()
    worst = truth.abs().amax()
    assert difference.amax() <= relative * worst + floor, (float(difference.amax()), float(worst))
    norm = relative * truth.norm() + floor * math.sqrt(truth.numel())
    assert difference.norm() <= norm, (float(difference.norm()), float(truth.norm()))
