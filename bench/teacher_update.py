# SPDX-License-Identifier: Apache-2.0
"""`uda.teacher.Teacher.update`, no op but a step's: the moving average of a network's parameters.

A form is a network, and its sizes are its own, whatever is asked: n values in d tensors.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.problem import Problem, Settings, relative
from pipa_fast.models import ModelConfig, SegmentationNetwork, build_network
from pipa_fast.uda.teacher import Teacher, momentum

SIZES = (1,)
DIMS = (1,)
VARIANTS = ("streets_s", "mit_b0")
HEADS = {"streets_s": "light", "mit_b0": "daformer"}
ITERATION = 100  # the momentum is 0.99


def ours(
    features: Tensor, *, teacher: Teacher, student: SegmentationNetwork, iteration: int
) -> list[Tensor]:
    """Update as a step does."""
    teacher.update(student, iteration)
    return list(teacher.network.parameters())


OURS: dict[str, Callable[..., Any]] = {"foreach": ours}


def problem(s: Settings) -> Problem:
    """Return a student with random parameters, and a teacher that is some steps behind."""
    torch.manual_seed(s.seed)
    model = ModelConfig(encoder=s.variant, head=HEADS[s.variant])  # type: ignore[arg-type]
    student = build_network(model).to(s.device)
    teacher = Teacher(student)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    before = [p.clone() for p in teacher.network.parameters()]
    theirs = dict(student.named_parameters())
    after = [theirs[name].detach() for name, _ in teacher.network.named_parameters()]
    old, new = (torch.cat([p.double().flatten() for p in ps]) for ps in (before, after))

    def error(found: list[Tensor], truth: Tensor) -> float:
        """Return the relative error of the change, and undo it for who comes next."""
        found_error = relative(torch.cat([p.double().flatten() for p in found]), truth)
        for parameter, value in zip(teacher.network.parameters(), before, strict=True):
            parameter.data.copy_(value)
        return found_error

    return Problem(
        settings=s,
        features=torch.zeros((), device=s.device),
        arguments={"teacher": teacher, "student": student, "iteration": ITERATION},
        truth=lambda *_, **__: old.lerp(new, 1 - momentum(ITERATION, teacher.ceiling)),
        pairs=len(old),
        facts={"n": len(old), "m": None, "d": len(before), "temperature": None, "classes": None},
        differentiable=False,
        value_error=error,
        count=True,
    )
