# SPDX-License-Identifier: Apache-2.0
"""The banded loss against upsample-then-compare, and what the op promises."""

import pytest
import torch
from torch.autograd import gradcheck
from torch.library import opcheck

from pipa_fast import ops
from pipa_fast.ops import _bands
from pipa_fast.reference.upsampled_cross_entropy import upsampled_cross_entropy as reference

SIZES = [
    ((4, 6), (16, 24)),
    ((5, 7), (13, 30)),
    ((6, 5), (6, 5)),
    ((8, 9), (3, 5)),
    ((1, 1), (4, 3)),
]


@pytest.fixture(autouse=True, params=[1, 2**20], ids=["row by row", "one band"])
def elements(request, monkeypatch):
    monkeypatch.setattr(_bands, "ELEMENTS_CPU", request.param)


def problem(small, full, dtype=torch.float64, images=2, classes=4):
    logits = (3 * torch.randn(images, classes, *small, dtype=torch.float64)).to(dtype)
    labels = torch.randint(0, classes, (images, *full))
    labels[torch.rand(labels.shape) < 0.2] = 255
    return logits.requires_grad_(), labels, torch.rand(labels.shape, dtype=torch.float64)


@pytest.mark.parametrize("average", ["valid", "all"])
@pytest.mark.parametrize(("small", "full"), SIZES)
def test_value_and_gradient(small, full, average):
    logits, labels, weights = problem(small, full)
    for w in (None, weights):
        loss = ops.upsampled_cross_entropy(logits, labels, weights=w, average=average)
        expected = reference(logits, labels, weights=w, average=average)
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-13)
        (gradient,), (truth,) = (torch.autograd.grad(x, logits) for x in (loss, expected))
        torch.testing.assert_close(gradient, truth, rtol=1e-10, atol=1e-14)


def test_gradcheck():
    logits, labels, weights = problem((3, 4), (7, 9), images=1, classes=3)
    gradcheck(lambda x: ops.upsampled_cross_entropy(x, labels, weights=weights), logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    logits, labels, _ = problem((5, 7), (20, 21), dtype)
    labels = labels.to(torch.uint8)
    loss = ops.upsampled_cross_entropy(logits, labels)
    loss.backward()
    exact = logits.detach().double().requires_grad_()
    expected = reference(exact, labels.long())
    expected.backward()
    assert loss.dtype == torch.float32 and logits.grad.dtype == dtype
    # what is rounded to the logits' dtype is the gradient, once
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    eps = torch.finfo(dtype).eps
    error = (logits.grad.double() - exact.grad).norm()
    assert error <= max(eps, 1e-5) * exact.grad.norm()


def test_all_ignored_is_zero_in_the_graph():
    logits, labels, _ = problem((3, 4), (6, 8))
    for average in ("valid", "all"):
        loss = ops.upsampled_cross_entropy(logits, torch.full_like(labels, 255), average=average)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss.item() == 0 and gradient.abs().max() == 0
    empty = ops.upsampled_cross_entropy(logits[:0], labels[:0])
    assert empty.item() == 0 and empty.requires_grad


def test_uniform_weight_scales():
    logits, labels, _ = problem((3, 4), (6, 8))
    for average in ("valid", "all"):
        whole = ops.upsampled_cross_entropy(logits, labels, average=average)
        part = ops.upsampled_cross_entropy(
            logits, labels, weights=torch.full(labels.shape, 0.25), average=average
        )
        torch.testing.assert_close(part, whole / 4)


def test_opcheck():
    for images, weights in ((2, torch.rand(2, 6, 8)), (0, None)):
        logits, labels, _ = problem((3, 4), (6, 8), torch.float32, images)
        opcheck(
            torch.ops.pipa_fast.upsampled_cross_entropy.default,
            (logits, labels, weights, 255, False),
        )


def test_compile_and_autocast():
    logits, labels, _ = problem((3, 4), (6, 8), torch.float32)
    compiled = torch.compile(ops.upsampled_cross_entropy, fullgraph=True, backend="aot_eager")
    expected = ops.upsampled_cross_entropy(logits, labels)
    torch.testing.assert_close(compiled(logits, labels), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert ops.upsampled_cross_entropy(logits, labels) == expected


def test_bad_arguments():
    logits, labels, weights = problem((3, 4), (6, 8))
    bad = [
        ("logits", (logits[0], labels), {}),
        ("logits", (logits[:, :0], labels), {}),
        ("logits", (logits.long(), labels), {}),
        ("labels", (logits, labels[0]), {}),
        ("labels", (logits, labels[:1]), {}),
        ("labels", (logits, labels.float()), {}),
        ("weights", (logits, labels), {"weights": weights[:1]}),
        ("average", (logits, labels), {"average": "mean"}),
    ]
    for name, args, settings in bad:
        with pytest.raises(ValueError, match=name):
            ops.upsampled_cross_entropy(*args, **settings)
