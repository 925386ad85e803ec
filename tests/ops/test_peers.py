# SPDX-License-Identifier: Apache-2.0
"""The "all" form beside pytorch-metric-learning's SupConLoss, written by other people."""

import pytest
import torch
from pytorch_metric_learning.losses import SupConLoss
from pytorch_metric_learning.reducers import MeanReducer

from pipa_fast import ops


@pytest.mark.parametrize("backend", ops.backends("pixel_contrast", "cpu"))
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_all_form_is_supervised_contrast(backend, temperature):
    labels = torch.arange(60) % 7  # every class has positives: rows without are peers' own affair
    raw = torch.randn(60, 24, requires_grad=True)  # they normalise inside, and we before
    x = torch.nn.functional.normalize(raw, dim=1)
    theirs = SupConLoss(temperature=temperature, reducer=MeanReducer())(x, labels)
    ours = ops.pixel_contrast(
        x, labels, temperature=temperature, denominator="all", backend=backend
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    (expected,) = torch.autograd.grad(theirs, raw, retain_graph=True)
    (found,) = torch.autograd.grad(ours, raw)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
