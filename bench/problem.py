# SPDX-License-Identifier: Apache-2.0
"""What a bench of an op is made of. A file `bench/OP.py` gives

SIZES, DIMS   default sizes n and d; what they count is told in the file
VARIANTS      forms of the op worth timing, the first by default; ("",) where there is one
problem(s)    the `Problem` of `Settings` s
OURS          only where OP is no op of `pipa_fast.ops`: our functions for it, by name
traffic(…)    only where useful work is counted: the bytes it needs, for `python -m bench roofline`

and `bench/peers/OP.py` gives PEERS, what it is compared with. Nothing else is needed.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

OPS = (
    "pixel_contrast",
    "patch_consistency",
    "upsampled_cross_entropy",
    "pseudo_labels",
    "sample_anchors",
    "gather_pixels",
    "overlap_pairs",
    "downscale_labels",
    "teacher_update",
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a problem is made from: plain values, so that another process can make the same one."""

    op: str
    n: int
    d: int
    device: str = "cpu"
    dtype: str = "float32"
    seed: int = 0
    variant: str = ""
    temperature: float = 0.1


def short(dtype: torch.dtype) -> str:
    """Return a dtype's name."""
    return str(dtype).removeprefix("torch.")


def rounded(value: Any, dtype: torch.dtype) -> Any:
    """Return a tensor of numbers in a dtype, anything else as it is."""
    floats = isinstance(value, Tensor) and value.is_floating_point()
    return value.to(dtype) if floats else value


def relative(found: Tensor, truth: Tensor) -> float:
    """Return ‖found - truth‖ / ‖truth‖ in float64; not a number where `found` has such."""
    found, truth = found.double(), truth.double()
    scale = float(truth.norm())
    return float((found - truth).norm()) / (scale or 1.0)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One size of an op, ready to run. Contenders are called with (features, **arguments)."""

    settings: Settings
    features: Tensor  # the op's first argument, which takes the gradient
    arguments: dict[str, Any]  # the op's other arguments; peers take the same ones
    truth: Callable[..., Any]  # right when called with float64
    pairs: int  # elements of the largest matrix of the eager formula
    facts: dict[str, Any] = field(default_factory=dict)  # more columns of a row: m, classes, …
    product: tuple[Tensor, Tensor] | None = None  # [N, D], [M, D]: the divisor is their torch.mm
    passes: dict[str, int] = field(default_factory=dict)  # useful work of a mode, in products
    differentiable: bool = True
    gradient: Tensor | None = None  # what backward starts from; None where a loss [] is returned
    count: bool = False  # operators and waits too: said of plain torch, not of native kernels
    value_error: Callable[[Any, Any], float] = relative  # of what the op returns

    @property
    def modes(self) -> tuple[str, ...]:
        """What is timed."""
        return ("forward", "backward", "both") if self.differentiable else ("forward",)

    def flop(self, mode: str) -> int | None:
        """Return the useful work [flop]: 2NMD a pass, however much a contender executes."""
        if self.product is None or mode not in self.passes:
            return None
        a, b = self.product
        return 2 * a.shape[0] * b.shape[0] * a.shape[1] * self.passes[mode]


def make(settings: Settings) -> Problem:
    """Return the problem of the op's own file."""
    return import_module(f"bench.{settings.op}").problem(settings)


def unit_rows(n: int, d: int, generator: torch.Generator) -> Tensor:
    """Return [n, d] random rows of length one."""
    return torch.nn.functional.normalize(torch.randn(n, d, generator=generator), dim=1)


def harmonic_labels(n: int, classes: int, generator: torch.Generator) -> Tensor:
    """Return [n] shuffled labels, class c as often as 1/(c + 1) says, to the nearest row."""
    edges = (1 / torch.arange(1, classes + 1, dtype=torch.float64)).cumsum(0)
    counts = (edges / edges[-1] * n).round().long().diff(prepend=torch.zeros(1, dtype=torch.long))
    return torch.arange(classes).repeat_interleave(counts)[torch.randperm(n, generator=generator)]


def square_labels(
    images: int, side: int, patch: int, classes: int, generator: torch.Generator
) -> Tensor:
    """Return [images, side, side] labels in squares of `patch` pixels a side.

    Some classes are rare, as harmonic_labels has it, and one square in ten is 255, unlabelled.
    """
    cells = max(1, side // patch)
    coarse = harmonic_labels(images * cells * cells, classes, generator).view(images, cells, cells)
    coarse[torch.rand(coarse.shape, generator=generator) < 0.1] = 255
    place = torch.arange(side).mul(cells).div(side, rounding_mode="floor")
    return coarse[:, place][:, :, place]
