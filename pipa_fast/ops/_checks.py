# SPDX-License-Identifier: Apache-2.0
"""Checks and conversions that the ops share. But for check_values, none reads a tensor's values."""

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import _resolve_process_group

from pipa_fast.checks import require
from pipa_fast.ops.backends import KERNEL_DTYPES, MAX_DIM

_FLOATS = (*KERNEL_DTYPES, torch.float64)


def check_rows(name: str, rows: Tensor) -> None:
    """Features are [N, D] of a float dtype with 1 <= D <= 512."""
    check_float(name, rows)
    require(
        rows.ndim == 2 and 1 <= rows.shape[1] <= MAX_DIM,
        name,
        tuple(rows.shape),
        f"of shape [N, D] with 1 <= D <= {MAX_DIM}",
    )


def check_feature_map(name: str, features: Tensor) -> None:
    """Features are [B, D, h, w] of a float dtype with 1 <= D <= 512."""
    check_rank(name, features, "B D h w")
    check_float(name, features)
    expected = f"of shape [B, D, h, w] with 1 <= D <= {MAX_DIM}"
    require(1 <= features.shape[1] <= MAX_DIM, name, tuple(features.shape), expected)


def check_float(name: str, tensor: Tensor) -> None:
    """A dense tensor of float32, bfloat16, float16 or float64."""
    check_dense(name, tensor)
    require(tensor.dtype in _FLOATS, name, tensor.dtype, "float32, bfloat16, float16 or float64")


def check_dense(name: str, tensor: Tensor) -> None:
    """A tensor that has strides: no sparse one."""
    require(isinstance(tensor, Tensor), name, type(tensor), "a tensor")
    require(tensor.layout == torch.strided, name, tensor.layout, "a dense tensor")


def check_like(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """A tensor with the dtype and on the device of another."""
    require(tensor.dtype == other.dtype, name, tensor.dtype, f"as {other_name}, {other.dtype}")
    check_device(name, tensor, other)


def check_device(name: str, tensor: Tensor, other: Tensor) -> None:
    """A tensor on the device of another."""
    require(tensor.device == other.device, name, str(tensor.device), f"on {other.device}")


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """A tensor of exactly this shape."""
    require(isinstance(tensor, Tensor), name, type(tensor), f"a tensor of shape {list(shape)}")
    require(tuple(tensor.shape) == shape, name, tuple(tensor.shape), f"of shape {list(shape)}")


def check_rank(name: str, tensor: Tensor, axes: str) -> None:
    """A tensor with as many dimensions as `axes` names, as "B H W"."""
    require(
        isinstance(tensor, Tensor) and tensor.ndim == len(axes.split()),
        name,
        tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor),
        f"of shape [{', '.join(axes.split())}]",
    )


def integers(name: str, tensor: Tensor, like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return integer labels as int64, once their dtype, shape and device are right."""
    check_integer(name, tensor)
    check_shape(name, tensor, shape)
    check_device(name, tensor, like)
    return tensor.to(torch.int64)


def check_integer(name: str, tensor: Tensor) -> None:
    """A dense tensor of an integer dtype."""
    check_dense(name, tensor)
    dtype = tensor.dtype
    whole = not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)
    require(whole, name, dtype, "of an integer dtype")


def pixel_weights(weights: Tensor | None, like: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """Return weights as wide as the loss of `like`, once shape and device are right, or None."""
    if weights is None:
        return None
    check_dense("weights", weights)
    require(not weights.is_complex(), "weights", weights.dtype, "of a real dtype")
    check_shape("weights", weights, shape)
    check_device("weights", weights, like)
    check_constant("weights", weights)
    return weights.to(torch.promote_types(like.dtype, torch.float32))


def check_constant(name: str, tensor: Tensor) -> None:
    """A tensor that no gradient is wanted for: there is none."""
    if tensor.requires_grad:
        raise ValueError(f"{name} must be a constant: pass {name}.detach(); got requires_grad=True")


def check_values(name: str, fine: Tensor, expected: str) -> None:
    """A condition [] that holds: elsewhere than on a CPU an assertion that nobody waits for."""
    message = f"{name} must be {expected}"
    try:
        torch._assert_async(fine, message)
    except RuntimeError as error:  # a CPU's, which is at once
        if message not in str(error):  # as of torch.vmap, which can ask no tensor for its value
            raise
        raise ValueError(message) from error


def check_count(name: str, value: Any, *, least: int = 0) -> None:
    """An int of at least `least`."""
    require(is_count(value, least), name, value, f"an int of at least {least}")


def is_count(value: Any, least: int) -> bool:
    """Whether a value is an int, one that torch.compile leaves open included, of at least that."""
    whole = isinstance(value, int | torch.SymInt) and not isinstance(value, bool)
    return whole and value >= least


def check_label(name: str, value: Any) -> None:
    """An int that a label of int64 can be."""
    whole = isinstance(value, int | torch.SymInt) and not isinstance(value, bool)
    require(whole and -(2**63) <= value < 2**63, name, value, "an int of 64 bits")


def check_share(name: str, value: Any) -> None:
    """A number from 0 to 1."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    require(number and 0 <= value <= 1, name, value, "a number in [0, 1]")


def check_temperature(temperature: Any, name: str = "temperature") -> float:
    """Return a positive finite temperature as a float."""
    number = isinstance(temperature, int | float) and not isinstance(temperature, bool)
    require(
        number and 0 < temperature < math.inf,  # torch.compile follows no math.isfinite
        name,
        temperature,
        "a positive finite number",
    )
    return float(temperature)


def group_name(group: "dist.ProcessGroup | str | None") -> str:
    """Return the name under which an op can find a process group; "" for None."""
    if group is None:
        return ""
    if isinstance(group, str):
        require(_is_group(group), "group", group, "a process group, the name of one, or None")
        return group
    require(
        hasattr(group, "group_name"), "group", type(group), "a process group, its name, or None"
    )
    return group.group_name


@torch.compiler.assume_constant_result
def _is_group(name: str) -> bool:
    try:
        _resolve_process_group(name)  # pyright: ignore[reportArgumentType]
    except RuntimeError:
        return False
    return True
