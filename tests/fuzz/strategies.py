# SPDX-License-Identifier: Apache-2.0
"""What is drawn: small dataclasses of plain numbers, and the tensors that they stand for.

A case's repr is all that it takes to run it again: tensors are functions of it and of its seed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

INT64 = (-(2**63), 2**63 - 1)
HALVES = ("bfloat16", "float16")
FLOATS = ("float32", *HALVES, "float64")
INTEGERS = ("int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64")
LAYOUTS = ("contiguous", "transposed", "every other", "inside", "expanded", "negated")
# Mostly 0 to 1: what a head is trained with. Kernels take over at 0.025.
TEMPERATURES = (0.1, 0.07, 0.025, 0.0249, 1.0, 2.0, 0.004, 100.0)
IGNORED = (255, -100, -1, 0, 3, 2**40, *INT64)

seeds = st.integers(0, 2**32 - 1)
floats = st.sampled_from((*FLOATS, "float32", "float32"))
integers = st.sampled_from((*INTEGERS, *["int64"] * 6))  # which alone holds huge labels
layouts = st.sampled_from((*LAYOUTS, "contiguous"))
# Blocks are of 96 rows, tiles of 6 to 32; most cases are small, which is where edges are.
counts = st.one_of(st.integers(0, 3), st.integers(0, 40), st.sampled_from((95, 96, 97, 130, 193)))
widths = st.one_of(st.integers(1, 20), st.sampled_from((1, 8, 31, 32, 33, 64, 130, 512)))


def dice(seed: int) -> torch.Generator:
    """Return torch's generator of a case."""
    return torch.Generator().manual_seed(seed)


def dtype_of(name: str) -> torch.dtype:
    """Return the dtype of a name."""
    return getattr(torch, name)


def laid_out(tensor: Tensor, layout: str) -> Tensor:
    """Return a tensor of the same values (but for "expanded") with other strides."""
    if layout == "transposed":
        axes = tuple(reversed(range(tensor.ndim)))
        return tensor.permute(axes).contiguous().permute(axes)
    if layout == "every other" and tensor.ndim:
        wide = tensor.new_ones(*tensor.shape[:-1], 2 * tensor.shape[-1])
        wide[..., ::2] = tensor
        return wide[..., ::2]
    if layout == "inside":  # of a buffer, at an address that no vector is aligned to
        buffer = tensor.new_ones(tensor.numel() + 2)
        buffer[1:-1] = tensor.flatten()
        return buffer[1:-1].view(tensor.shape)
    if layout == "expanded" and tensor.numel():
        return tensor[:1].expand(tensor.shape)
    if layout == "negated" and tensor.dtype.is_signed:
        return torch._neg_view(-tensor)
    return tensor


def unit_rows(
    n: int, d: int, dtype: str, kind: str, generator: torch.Generator, width: float = 0.5
) -> Tensor:
    """Return [n, d] rows of a norm of at most one: "random", "near" each other, or some "zero"."""
    rows = torch.randn(n, d, generator=generator, dtype=torch.float64)
    if kind == "near":
        rows = torch.randn(d, generator=generator, dtype=torch.float64) + width * rows
    rows = F.normalize(rows, dim=1)
    if kind == "zero" and n:
        rows[torch.rand(n, generator=generator) < 0.3] = 0
    return rows.to(dtype_of(dtype))


LABEL_KINDS = ("few", "one", "own", "ignored", "negative", "huge", "pairs", "some ignored")


def labels_of(
    shape: Sequence[int], kind: str, dtype: str, ignored: int, generator: torch.Generator
) -> Tensor:
    """Return labels of a shape; what does not fit into their dtype becomes 1."""

    def ints(low: int, high: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    count = max(1, int(torch.tensor(shape).prod()))
    if kind == "one":
        labels = torch.full(shape, 7)
    elif kind == "own":
        labels = torch.arange(count)[: int(torch.tensor(shape).prod())].view(shape)
    elif kind == "ignored":
        labels = torch.full(shape, ignored)
    elif kind == "negative":
        labels = ints(-4, 3)
    elif kind == "huge":
        labels = torch.tensor([*INT64, 2**62, -(2**62), 2**31, 2**32, 5, 5])[ints(0, 8)]
    elif kind == "pairs":
        labels = ints(0, max(1, count // 2))
    else:
        labels = ints(0, 4)
    if kind in ("some ignored", "huge", "negative", "pairs"):
        labels = torch.where(torch.rand(shape, generator=generator) < 0.25, ignored, labels)
    target = torch.iinfo(dtype_of(dtype))
    fits = (labels >= target.min) & (labels <= min(target.max, INT64[1]))
    return torch.where(fits, labels, 1).to(dtype_of(dtype))


WEIGHT_KINDS = ("none", "ones", "random", "zeros", "some", "one", "half", "whole", "yes and no")


def weights_of(shape: Sequence[int], kind: str, generator: torch.Generator) -> Tensor | None:
    """Return weights of a shape; None for "none"."""
    share = torch.rand(shape, generator=generator)
    if kind == "none":
        return None
    if kind == "ones":
        return torch.ones(shape)
    if kind == "zeros":
        return torch.zeros(shape)
    if kind == "some":
        return share * (share > 0.5)
    if kind == "one":
        return (torch.arange(share.numel()) == share.numel() // 2).float().view(share.shape)
    if kind == "half":
        return share.half()
    if kind == "whole":
        return (4 * share).to(torch.int32)
    if kind == "yes and no":
        return share > 0.5
    return share.double()


def sparse(tensor: Tensor) -> Tensor:
    """Return the same values, stored otherwise."""
    return tensor.to_sparse()


# What an argument may never be: each takes the right tensor and returns a wrong one.
Changes = dict[str, Callable[[Tensor], Any]]
NO_TENSOR: Changes = {
    "a list": lambda t: t.tolist(),
    "a number": lambda t: 3,
    "complex": lambda t: torch.zeros(t.shape, dtype=torch.complex64),
    "sparse": lambda t: torch.sparse_coo_tensor(size=t.shape, dtype=t.dtype, check_invariants=True),
}
NO_FLOATS: Changes = {
    **NO_TENSOR,
    "None": lambda t: None,
    "int64": lambda t: torch.zeros(t.shape, dtype=torch.int64),
    "bool": lambda t: torch.zeros(t.shape, dtype=torch.bool),
    "float8": lambda t: torch.zeros(t.shape).to(torch.float8_e4m3fn),
}
NO_INTEGERS: Changes = {
    **NO_TENSOR,
    "None": lambda t: None,
    "float32": lambda t: torch.zeros(t.shape),
    "bool": lambda t: torch.zeros(t.shape, dtype=torch.bool),
}
DIFFERENTIATED: Changes = {"differentiated": lambda t: t.float().detach().requires_grad_()}
NO_WEIGHTS = NO_TENSOR | DIFFERENTIATED
ELSEWHERE: Changes = {"elsewhere": lambda t: torch.zeros(t.shape, dtype=t.dtype, device="meta")}
ANOTHER_DTYPE: Changes = {
    "another dtype": lambda t: t.float() if t.dtype != torch.float32 else t.double()
}
NO_COLUMNS: Changes = {
    "no columns": lambda t: t[:, :0],
    "513 columns": lambda t: t.new_zeros(len(t), 513),
    "an axis less": lambda t: t[:, 0],
}
NO_SHAPE: Changes = {
    "an axis more": lambda t: t[..., None],
    "longer": lambda t: torch.cat((t, t.new_zeros(1, *t.shape[1:]))),
    "a scalar": lambda t: t.new_zeros(()),
}
CHANGES = NO_FLOATS | NO_INTEGERS | NO_WEIGHTS | ELSEWHERE | ANOTHER_DTYPE | NO_COLUMNS | NO_SHAPE
NO_TEMPERATURE = (0, 0.0, -1.0, float("nan"), float("inf"), "0.1", None, True, 1j)
NO_INDEX = (1.5, "255", None, 2**63, -(2**63) - 1, True)
NO_COUNT = (-1, 1.0, "3", None, True)
NO_SHARE = (-0.1, 1.1, float("nan"), "0.5", None, True)


@dataclass(frozen=True)
class Change:
    """A named change of a tensor argument."""

    name: str


def wrong_values(**arguments: Sequence[Any]) -> list[tuple[str, Any]]:
    """Return (argument, value) for values that an argument may not have."""
    return [(name, value) for name, values in arguments.items() for value in values]


def wrong_tensors(**arguments: Changes) -> list[tuple[str, Change]]:
    """Return (argument, change) for changes that make a tensor a wrong one."""
    return [(name, Change(change)) for name, found in arguments.items() for change in found]


def made_wrong(given: dict[str, Any], wrong: tuple[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the wrong argument's name, and the arguments with it."""
    name, value = wrong
    if isinstance(value, Change):
        right = given[name]
        if right is None:  # weights that were not drawn
            right = torch.ones_like(given["labels" if "labels" in given else "anchor_labels"])
        value = CHANGES[value.name](right)
    return name, given | {name: value}


def maybe(wrong: Sequence[Any]) -> st.SearchStrategy[Any]:
    """Something wrong in a sixth of the cases."""
    # st.one_of would take several st.none() for one
    return st.sampled_from([*[None] * (5 * len(wrong)), *wrong])


def wide_of(dtype: str) -> torch.dtype:
    """Return the dtype of a loss of features of a dtype."""
    return torch.promote_types(dtype_of(dtype), torch.float32)


def largest_share(weights: Tensor | None, counted: Tensor) -> float:
    """Return the largest part that one of the anchors has in a mean; 0 of none."""
    parts = counted.double() if weights is None else counted * weights.double()
    return float(parts.max() / parts.sum()) if parts.any() else 0.0
