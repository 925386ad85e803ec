# SPDX-License-Identifier: Apache-2.0
"""The reference against the equation, written out sum by sum and left to autograd."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from pipa_fast import ops
from pipa_fast.reference import pixel_contrast as reference


def textbook(x, labels, weights, temperature, denominator, ignore_index=255):
    """L of the design, one anchor and one positive at a time."""
    n = len(labels)
    part = [i for i in range(n) if labels[i] != ignore_index]
    positives = {i: [j for j in part if j != i and labels[j] == labels[i]] for i in part}
    anchors = [i for i in part if positives[i]]
    share = {i: 1.0 if weights is None else weights[i] for i in anchors}
    total = sum(share.values(), torch.zeros((), dtype=x.dtype))
    loss = 0 * x.sum()
    if total == 0:
        return loss
    for i in anchors:
        s = x @ x[i] / temperature
        others = [j for j in part if j != i and (denominator == "all" or labels[j] != labels[i])]
        if not others:
            continue
        log_z = torch.logsumexp(s[others], 0)
        mean = 0
        for j in positives[i]:
            margin = s[j] - log_z
            term = -margin if denominator == "all" else torch.logaddexp(-margin, 0 * margin)
            mean = mean + term / len(positives[i])
        loss = loss + share[i] / total * mean
    return loss


def rows(n, d, dtype=torch.float64):
    return F.normalize(torch.randn(n, d, dtype=torch.float64), dim=1).to(dtype)


LABELS = {
    "mixed": [3, 1, 1, 255, 0, 3, 3, 7, 1, 0, 255, 3],  # 7 is alone
    "one class": [2, 2, 2, 2, 2],
    "all alone": [0, 1, 2, 3],
    "all ignored": [255] * 4,
    "one anchor class": [0, 0, 1, 2],
    "one row": [5],
    "nothing": [],
}


@pytest.mark.parametrize("denominator", ["negatives", "all"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_value_and_gradient(labels, weighted, denominator):
    labels = torch.tensor(labels, dtype=torch.int64)
    x = rows(len(labels), 5).requires_grad_()
    weights = torch.rand(len(labels), dtype=torch.float64) if weighted else None
    if weighted and len(labels):
        weights[0] = 0
    for temperature in (0.1, 0.7):
        loss = ops.pixel_contrast(
            x, labels, weights=weights, temperature=temperature, denominator=denominator
        )
        expected = textbook(x, labels, weights, temperature, denominator)
        (gradient,) = torch.autograd.grad(loss, x)
        (truth,) = torch.autograd.grad(expected, x)
        torch.testing.assert_close(loss, expected, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(gradient, truth, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("denominator", ["negatives", "all"])
def test_gradcheck(denominator):
    x = rows(9, 8).requires_grad_()
    labels = torch.tensor([0, 1, 2, 0, 1, 1, 255, 0, 4])
    weights = torch.rand(9, dtype=torch.float64)
    gradcheck(
        lambda x: ops.pixel_contrast(x, labels, weights=weights, denominator=denominator),
        x,
        atol=1e-8,
    )


@pytest.mark.parametrize("denominator", ["negatives", "all"])
@pytest.mark.parametrize("temperature", [0.02, 1e-3])
def test_small_temperature(temperature, denominator):
    """exp((x·y - 1)/τ) underflows here, its logarithm does not."""
    labels = torch.tensor([0, 1, 2, 0, 1, 1, 0, 4])
    x = rows(8, 6).requires_grad_()
    expected = textbook(x, labels, None, temperature, denominator)
    (truth,) = torch.autograd.grad(expected, x)
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 1e-4)):
        low = x.detach().to(dtype).requires_grad_()
        loss = ops.pixel_contrast(low, labels, temperature=temperature, denominator=denominator)
        loss.backward()
        torch.testing.assert_close(loss.double(), expected, rtol=tolerance, atol=1e-9)
        torch.testing.assert_close(low.grad.double(), truth, rtol=100 * tolerance, atol=tolerance)


@pytest.mark.parametrize("denominator", ["negatives", "all"])
def test_blocks_of_rows_change_nothing(monkeypatch, denominator):
    x, labels = rows(23, 5).requires_grad_(), torch.randint(0, 4, (23,))
    whole = ops.pixel_contrast(x, labels, denominator=denominator)
    (gradient,) = torch.autograd.grad(whole, x)
    monkeypatch.setattr(reference, "ELEMENTS", 23 * 3)
    blocks = ops.pixel_contrast(x, labels, denominator=denominator)
    torch.testing.assert_close(blocks, whole, rtol=1e-14, atol=0)
    torch.testing.assert_close(torch.autograd.grad(blocks, x)[0], gradient, rtol=0, atol=1e-15)


def test_released_form():
    """PiPa's published code computes "negatives", where every row has a positive."""
    x, labels, tau = rows(12, 5), torch.arange(12) % 3, 0.1
    s = x @ x.T / tau
    same = labels[:, None] == labels
    negatives = (s.exp() * ~same).sum(1, keepdim=True)
    log_probability = s - torch.log(s.exp() + negatives)
    positive = same & ~torch.eye(12, dtype=torch.bool)
    published = -((log_probability * positive).sum(1) / positive.sum(1)).mean()
    torch.testing.assert_close(ops.pixel_contrast(x, labels), published, rtol=1e-13, atol=0)
