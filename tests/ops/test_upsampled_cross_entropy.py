# SPDX-License-Identifier: Apache-2.0
"""The loss on each backend against upsample-then-compare, and what the op promises."""

import itertools

import pytest
import torch
from torch.autograd import gradcheck
from torch.library import opcheck

from pipa_fast import ops
from pipa_fast.reference.upsampled_cross_entropy import upsampled_cross_entropy as composed

BACKENDS = ops.backends("upsampled_cross_entropy", "cpu")
SIZES = [
    ((4, 6), (16, 24)),
    ((5, 7), (13, 30)),
    ((6, 5), (6, 5)),
    ((8, 9), (3, 5)),
    ((1, 1), (4, 3)),
]


@pytest.fixture(autouse=True, params=BACKENDS)
def backend(request, monkeypatch):
    """Every test runs on each; what is float64 goes by without a name."""
    monkeypatch.setenv("PIPA_FAST_BACKEND", request.param)
    return request.param


def problem(small, full, dtype=torch.float32, images=2, classes=4):
    logits = (3 * torch.randn(images, classes, *small, dtype=torch.float64)).to(dtype)
    labels = torch.randint(0, classes, (images, *full))
    labels[torch.rand(labels.shape) < 0.2] = 255
    return logits.requires_grad_(), labels, torch.rand(labels.shape, dtype=torch.float64)


def truth(logits, labels, **settings):
    """Loss and gradient by autograd in float64."""
    exact = logits.detach().double().requires_grad_()
    loss = composed(exact, labels.long(), **settings)
    return loss.detach(), torch.autograd.grad(loss, exact)[0]


@pytest.mark.parametrize("average", ["valid", "all"])
@pytest.mark.parametrize(("small", "full"), SIZES)
def test_value_and_gradient(small, full, average):
    logits, labels, weights = problem(small, full)
    for w in (None, weights):
        loss = ops.upsampled_cross_entropy(logits, labels, weights=w, average=average)
        (gradient,) = torch.autograd.grad(loss, logits)
        expected, slope = truth(logits, labels, weights=w, average=average)
        torch.testing.assert_close(loss.double(), expected, rtol=2e-6, atol=1e-7)
        assert (gradient.double() - slope).norm() <= 2e-6 * slope.norm()
        torch.testing.assert_close(gradient.double(), slope, rtol=1e-4, atol=1e-7)


def test_float64_is_the_reference(monkeypatch):
    monkeypatch.delenv("PIPA_FAST_BACKEND")
    logits, labels, weights = problem((3, 4), (7, 9), torch.float64, images=1, classes=3)
    gradcheck(lambda x: ops.upsampled_cross_entropy(x, labels, weights=weights), logits)
    for average, w in itertools.product(("valid", "all"), (weights, None)):
        loss = ops.upsampled_cross_entropy(logits, labels, weights=w, average=average)
        expected, slope = truth(logits, labels, weights=w, average=average)
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-13)
        (gradient,) = torch.autograd.grad(loss, logits)
        torch.testing.assert_close(gradient, slope, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    logits, labels, _ = problem((5, 7), (20, 21), dtype)
    labels = labels.to(torch.uint8)
    loss = ops.upsampled_cross_entropy(logits, labels)
    loss.backward()
    expected, slope = truth(logits, labels)
    assert loss.dtype == torch.float32 and logits.grad.dtype == dtype
    # what is rounded to the logits' dtype is the gradient, once
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    eps = torch.finfo(dtype).eps
    assert (logits.grad.double() - slope).norm() <= max(eps, 1e-5) * slope.norm()


def test_all_ignored_is_zero_in_the_graph():
    logits, labels, _ = problem((3, 4), (6, 8))
    for average in ("valid", "all"):
        loss = ops.upsampled_cross_entropy(logits, torch.full_like(labels, 255), average=average)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss.item() == 0 and gradient.abs().max() == 0
    empty = ops.upsampled_cross_entropy(logits[:0], labels[:0])
    assert empty.item() == 0 and empty.requires_grad
    empty.backward()
    assert logits.grad.abs().max() == 0


def test_uniform_weight_scales():
    logits, labels, _ = problem((3, 4), (6, 8))
    for average in ("valid", "all"):
        whole = ops.upsampled_cross_entropy(logits, labels, average=average)
        part = ops.upsampled_cross_entropy(
            logits, labels, weights=torch.full(labels.shape, 0.25), average=average
        )
        torch.testing.assert_close(part, whole / 4)


def test_any_layout_and_any_ignored_label():
    logits, labels, _ = problem((5, 7), (13, 30))
    for ignore_index in (255, -1, 2):
        own = labels.masked_fill(labels == 255, ignore_index)
        expected, slope = truth(logits, own, ignore_index=ignore_index)
        last = logits.detach().to(memory_format=torch.channels_last).requires_grad_()
        wide = own.transpose(1, 2).contiguous().transpose(1, 2)
        loss = ops.upsampled_cross_entropy(last, wide, ignore_index=ignore_index)
        (gradient,) = torch.autograd.grad(loss, last)
        torch.testing.assert_close(loss.double(), expected, rtol=2e-6, atol=1e-7)
        assert (gradient.double() - slope).norm() <= 2e-6 * slope.norm()


def test_no_gradient_is_computed_where_none_is_wanted(backend):
    logits, labels, _ = problem((3, 4), (6, 8))
    with torch.no_grad():
        assert not ops.upsampled_cross_entropy(logits, labels).requires_grad
    assert not ops.upsampled_cross_entropy(logits.detach(), labels).requires_grad
    op = torch.ops.pipa_fast.upsampled_cross_entropy
    loss, slope = op(logits, labels, None, 255, False, False, backend)
    assert slope.numel() == 0
    with pytest.raises(RuntimeError, match="gradient=False"):
        loss.backward()


def test_a_label_that_is_no_class_is_refused():
    logits, labels, _ = problem((3, 4), (6, 8))
    for wrong in (4, -1, -100, 2**40):
        labels[1, 5, 7] = wrong
        with pytest.raises(ValueError, match=f"labels must be classes 0 to 3.*{wrong}"):
            ops.upsampled_cross_entropy(logits, labels)


def test_opcheck(backend):
    for images, weights in ((2, torch.rand(2, 6, 8)), (0, None)):
        logits, labels, _ = problem((3, 4), (6, 8), images=images)
        op = torch.ops.pipa_fast.upsampled_cross_entropy.default
        opcheck(op, (logits, labels, weights, 255, False, True, backend))
        opcheck(op, (logits.detach(), labels, weights, 255, True, False, backend))


def test_compile_and_autocast():
    logits, labels, _ = problem((3, 4), (6, 8))
    compiled = torch.compile(ops.upsampled_cross_entropy, fullgraph=True, backend="aot_eager")
    expected = ops.upsampled_cross_entropy(logits, labels)
    loss = compiled(logits, labels)
    torch.testing.assert_close(loss, expected)
    for a, b in zip(*(torch.autograd.grad(x, logits) for x in (loss, expected)), strict=True):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        torch.testing.assert_close(compiled(logits, labels), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert ops.upsampled_cross_entropy(logits, labels) == expected


def test_second_derivative_is_refused():
    logits, labels, _ = problem((3, 4), (6, 8))
    loss = ops.upsampled_cross_entropy(logits, labels)
    (gradient,) = torch.autograd.grad(loss, logits, create_graph=True)
    with pytest.raises(NotImplementedError):
        gradient.sum().backward()


def test_forward_mode_derivative_is_refused():
    logits, labels, _ = problem((3, 4), (6, 8))
    logits = logits.detach()
    with pytest.raises(NotImplementedError, match="forward-mode derivative"):
        torch.func.jvp(lambda x: ops.upsampled_cross_entropy(x, labels), (logits,), (logits,))


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
