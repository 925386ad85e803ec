# SPDX-License-Identifier: Apache-2.0
"""The reference against the equation, written out sum by sum and left to autograd."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from pipa_fast import ops
from pipa_fast.reference import patch_consistency as reference


def textbook(anchors, positives, bank, labels, bank_labels, weights, temperature):
    """L of the design, one anchor at a time."""
    loss, total = 0 * anchors.sum(), 0.0
    for i in range(len(labels)):
        weight = 1.0 if weights is None else weights[i].item()
        if labels[i] < 0:
            continue
        total += weight
        keys = [
            k for k, label in zip(bank, bank_labels, strict=True) if label not in (labels[i], -1)
        ]
        if not keys:
            continue
        s = torch.stack([anchors[i] @ k for k in keys]) / temperature
        positive = anchors[i] @ positives[i] / temperature
        loss = loss + weight * (torch.logsumexp(torch.cat([s, positive[None]]), 0) - positive)
    return loss / (total or 1.0)


def rows(n, d):
    return F.normalize(torch.randn(n, d, dtype=torch.float64), dim=1)


def problem(n, m, d=5, classes=3):
    labels, bank_labels = torch.randint(0, classes, (n,)), torch.randint(0, classes, (m,))
    labels[1::5] = -1
    bank_labels[::4] = -1
    return rows(n, d).requires_grad_(), rows(n, d), rows(m, d), labels, bank_labels


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("n", "m", "classes"), [(11, 17, 3), (4, 9, 1), (1, 5, 3), (0, 4, 3), (6, 0, 3), (0, 0, 3)]
)
def test_value_and_gradient(n, m, classes, weighted):
    args = problem(n, m, classes=classes)
    weights = (torch.rand(n, dtype=torch.float64) > 0.4).double() if weighted else None
    for temperature in (0.1, 0.9, 0.004):
        loss = ops.patch_consistency(*args, weights=weights, temperature=temperature)
        expected = textbook(*args, weights, temperature)
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-13)
        (gradient,) = torch.autograd.grad(loss, args[0])
        (truth,) = torch.autograd.grad(expected, args[0])
        torch.testing.assert_close(gradient, truth, rtol=1e-10, atol=1e-11)


def test_gradcheck():
    anchors, *rest = problem(7, 12)
    weights = torch.rand(7, dtype=torch.float64)
    gradcheck(lambda a: ops.patch_consistency(a, *rest, weights=weights), anchors, atol=1e-8)


def test_no_weight_is_zero_in_the_graph():
    args = problem(7, 12)
    loss = ops.patch_consistency(*args, weights=torch.zeros(7))
    loss.backward()
    assert loss.item() == 0 and args[0].grad.abs().max() == 0


def test_blocks_of_rows_change_nothing(monkeypatch):
    args = problem(23, 11)
    whole = ops.patch_consistency(*args)
    (gradient,) = torch.autograd.grad(whole, args[0])
    monkeypatch.setattr(reference, "ELEMENTS", 11 * 4)
    blocks = ops.patch_consistency(*args)
    torch.testing.assert_close(blocks, whole, rtol=1e-14, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(blocks, args[0])[0], gradient, rtol=0, atol=1e-15
    )
