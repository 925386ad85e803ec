# SPDX-License-Identifier: Apache-2.0
"""One call of a contender, forward and backward, with the time of each."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.problem import Problem


class Outcome(NamedTuple):
    """What one call gave."""

    value: Any
    gradient: Tensor | None
    ms: dict[str, float]  # of each mode


class Clock:
    """Marks points of time on the device, and returns the spans between them."""

    def __init__(self, device: torch.device):
        self.cuda, self.marks = device.type == "cuda", []

    def mark(self) -> None:
        """Remember now, or on a GPU where its queue is."""
        if self.cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def spans(self) -> list[float]:
        """Return the milliseconds from each mark to the next, once the work is done."""
        pairs = list(zip(self.marks[:-1], self.marks[1:], strict=True))
        if self.cuda:
            torch.cuda.synchronize()
            return [a.elapsed_time(b) for a, b in pairs]
        return [(b - a) * 1e3 for a, b in pairs]


def step(problem: Problem, function: Callable[..., Any]) -> Outcome:
    """Call a contender once, forward and backward."""
    leaf = problem.features.detach().requires_grad_(problem.differentiable)
    clock, gradient = Clock(leaf.device), None
    clock.mark()
    value = function(leaf, **problem.arguments)
    clock.mark()
    if problem.differentiable:
        (gradient,) = torch.autograd.grad(value, leaf, problem.gradient)
        clock.mark()
        value = value.detach()
    spans = clock.spans()
    ms = dict(zip(("forward", "backward"), spans, strict=False))
    return Outcome(value, gradient, ms | {"both": sum(spans)})
