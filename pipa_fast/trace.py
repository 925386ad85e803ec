# SPDX-License-Identifier: Apache-2.0
"""Named ranges around steps, phases and launches of ops, for Nsight (NVTX) and torch.profiler.

Sizes of tensors go along as a payload and not in the name: Nsight Systems sums up, and Nsight
Compute filters, by name. The package nvtx takes a tuple of integers as an array with a schema
(an extended payload of NVTX), which torch.cuda.nvtx, absent from CPU builds, cannot.

Where nobody listens a range costs half a microsecond, and no size is looked at:

python -m timeit -s "from pipa_fast.trace import trace_range" "with trace_range('step'): pass"
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, ParamSpec, TypeVar

import nvtx
from torch import Tensor
from torch.autograd import profiler
from torch.compiler import is_compiling

DOMAIN = "pipa_fast"
NOTHING = contextlib.nullcontext()
# A tool for NVTX is there when the process starts or not at all.
NSIGHT = nvtx.enabled() and isinstance(nvtx.get_domain(DOMAIN), nvtx.Domain)

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def trace_range(name: str, *values: Any) -> AbstractContextManager[None]:
    """Return a context that marks its work as `name`, with the sizes of the tensors in `values`.

    Sizes are those of tensors of two dimensions or more, one after the other. Vectors, scalars and
    what is no tensor may be given too, and add nothing.
    """
    if is_compiling():
        return contextlib.nullcontext()  # a compiled program holds no range
    # torch.autograd._profiler_enabled() says the same of a thread, and takes as long again
    profiled = profiler._is_profiler_enabled
    return _range(name, values, profiled=profiled) if NSIGHT or profiled else NOTHING


def launch_range(name: str, *values: Any) -> AbstractContextManager[None]:
    """Return what `trace_range` does for Nsight alone: torch.profiler sees operators by itself."""
    return _range(name, values, profiled=False) if NSIGHT else NOTHING


def traced(
    name: str,
) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Return a decorator that puts each call of a function into a range, its tensors as values."""

    def decorate(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        @functools.wraps(function)
        def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
            with trace_range(name, *args, *kwargs.values()):
                return function(*args, **kwargs)

        return call

    return decorate


@contextlib.contextmanager
def _range(name: str, values: tuple[Any, ...], *, profiled: bool) -> Iterator[None]:
    shapes = [tuple(x.shape) for x in values if isinstance(x, Tensor) and x.ndim >= 2]
    sizes = tuple(size for shape in shapes for size in shape)
    with contextlib.ExitStack() as open_ranges:
        if NSIGHT:
            open_ranges.enter_context(nvtx.annotate(name, domain=DOMAIN, payload=sizes or None))
        if profiled:
            text = ", ".join(str(list(shape)) for shape in shapes) or None
            open_ranges.enter_context(profiler.record_function(name, text))
        yield
