# SPDX-License-Identifier: Apache-2.0
"""A step of plain descent, by hand: what the guard lets through, puts back and counts."""

import math

import pytest
import torch
from torch import nn

from pipa_fast.training.guard import StepGuard


@pytest.mark.parametrize("fused", [True, False], ids=["found_inf", "apex"])
@pytest.mark.parametrize("scale", [None, 4.0])
def test_bad_steps_leave_no_trace_and_good_ones_are_taken(fused, scale):
    module = nn.BatchNorm1d(1)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5, fused=fused)
    guard = StepGuard([module], optimizer)
    scaler = torch.amp.GradScaler(
        "cpu", init_scale=scale or 1.0, growth_interval=9, enabled=scale is not None
    )
    assert guard.counts() == (0, 0)
    expected = [  # gradient, then weight (1 at first), steps taken, and dropped in all and in a row
        (1.0, 0.5, 1, (0, 0)),
        (math.inf, 0.5, 1, (1, 1)),
        (math.nan, 0.5, 1, (2, 2)),
        (-2.0, 1.5, 2, (2, 0)),
        (1e30, 1.5 - 0.5e30, 3, (2, 0)),
        (-math.inf, 1.5 - 0.5e30, 3, (3, 1)),
    ]
    for gradient, weight, steps, counts in expected:
        guard.begin()
        module(torch.ones(2, 1))
        factor = scaler.scale(torch.ones(()))
        module.weight.grad = gradient * factor.expand(1)
        module.bias.grad = torch.zeros(1)
        guard.look()
        guard.step(scaler)
        assert module.weight.item() == pytest.approx(weight)
        assert module.num_batches_tracked == steps
        assert module.running_mean.item() == pytest.approx(1 - 0.9**steps)
        assert guard.counts() == counts
    if scale is not None:
        assert scaler.get_scale() == scale / 2**3, "halved for each"


def test_gradients_of_half_precision_are_seen_too():
    weights = [nn.Parameter(torch.ones(2, dtype=d)) for d in (torch.float32, torch.bfloat16)]
    guard = StepGuard([], torch.optim.SGD(weights))
    for value, bad in ((3e38, False), (math.inf, True)):
        for weight in weights:
            weight.grad = torch.full_like(weight, 3e38)
        weights[1].grad[0] = value
        guard.look()
        assert bool(guard.bad) == bad
