# SPDX-License-Identifier: Apache-2.0
"""Who computes an op: each op's table of backends, what can run here, and why the rest cannot."""

import contextlib
import functools
import importlib
import logging
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.utils._triton
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from pipa_fast.ops import _fastest
from pipa_fast.trace import launch_range

# Measured on a two-core CPU, forward of an empty op with autograd: 58 us through define and
# register_autograd, 69 us through torch.library.custom_op; without gradients 18 and 28 us.
LIBRARY = torch.library.Library("pipa_fast", "DEF")
OPS = (
    "pixel_contrast",
    "patch_consistency",
    "sample_anchors",
    "gather_pixels",
    "overlap_pairs",
    "downscale_labels",
    "upsampled_cross_entropy",
    "pseudo_labels",
)
MAX_DIM = 512
KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_OLD_DRIVER = "its CUDA runtime finds no device"

_log = logging.getLogger("pipa_fast.ops")

try:
    importlib.import_module("pipa_fast._C")
    _EXTENSION = ""
except ImportError as error:
    _EXTENSION = f"the C++ extension pipa_fast._C does not load ({error})"


class Problem(NamedTuple):
    """What a backend's predicate looks at. Known on the host: no value of a tensor is."""

    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32
    dim: int = 64
    temperature: float = 0.1
    rows: int = 0


class Backend(NamedTuple):
    """One line of an op's table.

    `why_not` returns "" where the backend can run the problem, and otherwise the reason.
    `forward(...)` returns (loss, saved...), and `backward(grad, saved...)` the gradient.
    """

    name: str
    why_not: Callable[[Problem], str]
    forward: Callable[..., tuple[Tensor, ...]]
    backward: Callable[..., Tensor]


def reference_why_not(problem: Problem) -> str:
    """The reference runs everything that passes an op's checks."""
    return ""


def cpu_why_not(problem: Problem) -> str:
    """Return why csrc/cpu cannot run a problem, "" where it can."""
    if problem.device.type != "cpu":
        return f"it runs on CPU tensors, and these are on {problem.device.type}"
    return _EXTENSION or _kernel_why_not(problem)


def triton_why_not(problem: Problem) -> str:
    """Return why kernels/ cannot run a problem, "" where it can."""
    if problem.device.type != "cuda":
        return f"it runs on CUDA tensors, and these are on {problem.device.type}"
    return _triton_missing(problem.device) or _kernel_why_not(problem)


def cuda_why_not(problem: Problem) -> str:
    """Return why csrc/cuda cannot run a problem, "" where it can."""
    if problem.device.type != "cuda":
        return f"it runs on CUDA tensors, and these are on {problem.device.type}"
    return _cuda_missing(problem.device) or _kernel_why_not(problem)


@torch.compiler.assume_constant_result
def _cuda_missing(device: torch.device) -> str:
    """Return why no CUDA C++ kernel can be launched on a GPU, "" where one can."""
    try:
        extension = importlib.import_module("pipa_fast._CUDA")
    except ImportError as error:
        return f"its extension is not there ({error}); build it with PIPA_FAST_CUDA=1, see setup.py"
    if reason := _gpu_missing(device):
        return reason
    compiled = extension.compiled()
    # The extension brings a CUDA runtime of its own, for which torch's driver may be too old.
    if reason := extension.why_not():
        runtime, driver = (cuda_version(compiled[key]) for key in ("runtime", "driver"))
        return f"{_OLD_DRIVER} (it is of CUDA {runtime}, the driver of {driver}): {reason}"
    return _code_missing(device, compiled["archs"].split(), compiled["ptx"])


def cuda_version(number: int) -> str:
    """Return a CUDA version as people write it: 13000 is 13.0, 0 is none."""
    return f"{number // 1000}.{number % 1000 // 10}" if number else "none"


def _code_missing(device: torch.device, archs: list[str], ptx: str) -> str:
    """Return why no code that was compiled runs on a GPU, "" where some does.

    Code for 80 runs on 8.0 and up to 8.9, for 90a on 9.0 alone; PTX on that and everything newer.
    """
    here = torch.cuda.get_device_capability(device)
    for arch in archs:
        made = divmod(int(arch.rstrip("a")), 10)
        if here == made or (not arch.endswith("a") and made[0] == here[0] and made <= here):
            return ""
    if ptx and here >= divmod(int(ptx), 10):
        return ""
    known = ", ".join(f"sm_{arch}" for arch in archs) + (f" and PTX of {ptx}" if ptx else "")
    return (
        f"it was compiled for {known}, and this GPU has {here[0]}.{here[1]}; build it with "
        f'PIPA_FAST_CUDA_ARCHS="{here[0]}{here[1]}"'
    )


@torch.compiler.assume_constant_result
def _triton_missing(device: torch.device) -> str:
    """Return why no Triton kernel can be launched on a GPU, "" where one can."""
    if not torch.utils._triton.has_triton_package():
        return "the package triton is not installed"
    if reason := _gpu_missing(device):
        return reason
    return "" if has_triton() else "triton finds no driver for this GPU"


def _gpu_missing(device: torch.device) -> str:
    """Return why no kernel of ours runs on a GPU, "" where some do."""
    if not torch.cuda.is_available():
        return "torch sees no GPU that it can use"
    if torch.version.hip:
        return "it is made for NVIDIA's GPUs, and this torch is for AMD's"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"it needs compute capability 8.0 or more, and this GPU has {major}.{minor}"
    return ""


def _kernel_why_not(problem: Problem) -> str:
    """Limits that all hand-written kernels share."""
    if problem.dtype not in KERNEL_DTYPES:
        return f"it computes in float32, bfloat16 or float16, not {problem.dtype}"
    if 2 / problem.temperature > 80:
        return (
            f"its exponentials keep a fixed shift, safe while 2/temperature <= 80; temperature "
            f"is {problem.temperature}"
        )
    return ""


def absent(*_: Any) -> Any:
    """Stand in for the functions of a backend that never can run."""
    raise AssertionError("a backend that cannot run was chosen")


def triton_backend(op: str) -> Backend:
    """Return the line of an op's table for kernels/OP.py, imported when it is first called."""
    module = f"pipa_fast.kernels.{op}"
    return Backend("triton", triton_why_not, later(module, "forward"), later(module, "backward"))


def contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    """Return tensors as csrc/cpu reads them; None stays None."""
    return [None if t is None else t.contiguous() for t in tensors]


def cuda_backend(op: str) -> Backend:
    """Return the line of an op's table for csrc/cuda/OP.cu, imported when it is first called."""
    module = f"pipa_fast.ops._{op}_cuda"
    return Backend("cuda", cuda_why_not, later(module, "forward"), later(module, "backward"))


def later(module: str, what: str) -> Callable[..., Any]:
    """Return a function that calls the one that a module has, which it imports when called."""

    def call(*arguments: Any) -> Any:
        return getattr(importlib.import_module(module), what)(*arguments)

    return call


@torch.compiler.assume_constant_result
def _warn(reason: str) -> None:
    """Tell of a driver that is too old: once, and also where choices are made to compile."""
    _warn_once(reason)


@functools.cache
def _warn_once(reason: str) -> None:
    _log.warning("the cuda backend is left out: %s", reason)


@torch.compiler.assume_constant_result
def _forced() -> str:
    return os.environ.get("PIPA_FAST_BACKEND", "")


def choose(op: str, table: tuple[Backend, ...], problem: Problem, requested: str | None) -> str:
    """Return the name of the backend that will compute `problem`.

    That is the requested one, else the one named by PIPA_FAST_BACKEND, else the one measured to be
    the fastest for such rows on this GPU, else the table's first that can. Raises ValueError, with
    the reason, where a named one cannot.
    """
    name = requested or _forced()
    first = "" if name else _known(op, problem)
    for row in [*(r for r in table if r.name == first), *(r for r in table if r.name != first)]:
        if name and row.name != name:
            continue
        reason = row.why_not(problem)
        if not reason:
            return row.name
        if name:
            raise ValueError(f"backend {name!r} cannot run {op} here: {reason}")
        if reason.startswith(_OLD_DRIVER):
            _warn(reason)
        if not torch.compiler.is_compiling():
            _log.debug("%s: not %s: %s", op, row.name, reason)
    known = ", ".join(repr(row.name) for row in table)
    source = "backend" if requested else "PIPA_FAST_BACKEND"
    raise ValueError(f"{source} must be one of {known} for {op}; got {name!r}")


def _known(op: str, problem: Problem) -> str:
    """Return the backend that is known to be the fastest for a problem, "" for none."""
    if problem.device.type != "cuda":
        return ""
    dtype = str(problem.dtype).removeprefix("torch.")
    for above, to, low, high, backend in _measured(op, problem.device, dtype):
        if above < problem.dim <= to and low <= problem.rows < high:
            return backend
    return ""


@torch.compiler.assume_constant_result
def _measured(
    op: str, device: torch.device, dtype: str
) -> tuple[tuple[int, int, int, int, str], ...]:
    if not _fastest.rows():
        return ()
    return _fastest.measured(op, torch.cuda.get_device_name(device), dtype)


def _table(op: str) -> tuple[Backend, ...]:
    if op not in OPS:
        raise ValueError(f"op must be one of {', '.join(OPS)}; got {op!r}")
    module = importlib.import_module(f"pipa_fast.ops.{op}")
    only_torch = (Backend("reference", reference_why_not, absent, absent),)
    return getattr(module, "BACKENDS", only_torch)


def backends_explained(op: str, device: str | torch.device) -> dict[str, str]:
    """Return each backend of an op with why it cannot run on the device; "" where it can.

    The question is asked for float32 rows and temperature 0.1. Raises ValueError for a name that is
    no op's, or no device's.
    """
    try:
        problem = Problem(torch.device(device))
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be a device or its name; got {device!r}: {error}") from error
    return {row.name: row.why_not(problem) for row in _table(op)}


def backends(op: str, device: str | torch.device) -> list[str]:
    """Return the names of the backends that can run an op on the device, best first."""
    return [name for name, reason in backends_explained(op, device).items() if not reason]


def has_triton() -> bool:
    """Return whether Triton kernels can be launched: a package without a driver is not enough."""
    return torch.utils._triton.has_triton()


def _without_autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which autocast casts nothing: a kernel's inputs have their dtypes."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


def implement(op: str, table: tuple[Backend, ...]) -> None:
    """Register who computes a defined op, and its backward op where it has one.

    Each calls the line of the table that its last argument names.
    """
    LIBRARY.impl(op, _caller(op, table, "forward"), "CompositeExplicitAutograd")
    if any(row.backward is not absent for row in table):
        backward = f"{op}_backward"
        LIBRARY.impl(backward, _caller(backward, table, "backward"), "CompositeExplicitAutograd")


def _caller(name: str, table: tuple[Backend, ...], what: str) -> Callable[..., Any]:
    launch = f"op:{name}"

    def call(first: Tensor, *rest: Any) -> Any:
        *settings, backend = rest
        row = next(row for row in table if row.name == backend)
        with launch_range(launch, first, *settings), _without_autocast(first.device):
            return getattr(row, what)(first, *settings)

    return call


def autocast_features(features: Tensor) -> Tensor:
    """Cast features as autocast casts a matmul's: to its dtype where enabled, float64 never."""
    device = features.device.type
    # Of a device without autocast, as meta is, torch takes no question about it.
    on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    if features.dtype == torch.float64 or not on:
        return features
    return features.to(torch.get_autocast_dtype(device))


def refuse_second_derivative(op: str) -> None:
    """Register for a backward op that differentiating it raises, instead of giving zeros."""

    def refuse(ctx: Any, *grads: Any) -> None:
        raise NotImplementedError(f"{op} has no second derivative")

    torch.library.register_autograd(f"pipa_fast::{op}", refuse, lib=LIBRARY)


def refuse_forward_mode(op: str, *tensors: Tensor | None) -> None:
    """Raise where a tensor has a tangent: torch would take the op's for one of zeros."""
    for tensor in tensors:
        if tensor is not None and unpack_dual(tensor).tangent is not None:
            raise NotImplementedError(f"{op} has no forward-mode derivative")
