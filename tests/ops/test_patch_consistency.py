# SPDX-License-Identifier: Apache-2.0
"""Every backend of patch consistency against the float64 reference, and what the op promises."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

from pipa_fast import ops
from tests.ops import beside_reference
from tests.ops.beside_reference import rows

BACKENDS = ops.backends("patch_consistency", "cpu")
run = functools.partial(beside_reference.run, ops.patch_consistency)
check = functools.partial(beside_reference.check, ops.patch_consistency)


def problem(n, m, d, dtype=torch.float32, classes=4):
    labels, bank_labels = torch.randint(0, classes, (n,)), torch.randint(0, classes, (m,))
    labels[1::5], bank_labels[::4] = -1, -1
    anchors = rows(n, d, dtype)
    positives = F.normalize(anchors.double() + 0.3 * rows(n, d).double(), dim=1).to(dtype)
    return anchors, positives, rows(m, d, dtype), labels, bank_labels


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("n", "m", "d", "dtype"),
    [
        (128, 256, 64, torch.float32),
        (131, 77, 64, torch.float32),
        (67, 130, 5, torch.float32),
        (9, 300, 512, torch.float32),
        (40, 60, 511, torch.bfloat16),
        (65, 33, 8, torch.bfloat16),
        (65, 100, 19, torch.float16),
        (12, 7, 1, torch.float32),
    ],
)
def test_sizes_and_dtypes(backend, n, m, d, dtype):
    args = problem(n, m, d, dtype)
    check(backend, args)
    check(backend, args, weights=torch.rand(n), temperature=0.3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("n", "m", "classes"), [(0, 0, 3), (0, 9, 3), (9, 0, 3), (1, 1, 3), (7, 8, 1)]
)
def test_degenerate(backend, n, m, classes):
    args = problem(n, m, 8, classes=classes)
    check(backend, args)
    check(backend, args, weights=torch.zeros(n))


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_to_sum_is_zero_in_the_graph(backend):
    anchors, *rest, labels, bank_labels = problem(9, 12, 8)
    anchors.requires_grad_()
    for args in (
        (*rest, torch.full_like(labels, -1), bank_labels),
        (*rest, labels, torch.full_like(bank_labels, -1)),
    ):
        loss = ops.patch_consistency(anchors, *args, backend=backend)
        (gradient,) = torch.autograd.grad(loss, anchors)
        assert loss.item() == 0 and gradient.abs().max() == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_negative_labels_take_no_part(backend):
    anchors, positives, bank, labels, bank_labels = problem(30, 41, 12)
    loss, gradient = run(anchors, positives, bank, labels, bank_labels, backend=backend)
    kept, keys = labels >= 0, bank_labels >= 0
    less, slope = run(
        anchors[kept], positives[kept], bank[keys], labels[kept], bank_labels[keys], backend=backend
    )
    torch.testing.assert_close(loss, less, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient[kept], slope, rtol=1e-5, atol=1e-7)
    assert gradient[~kept].abs().max() == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_rows_that_take_no_part_may_be_anything(backend, value):
    anchors, positives, bank, labels, bank_labels = problem(30, 41, 12)
    labels[0], bank_labels[0] = -1, -1
    expected = run(anchors, positives, bank, labels, bank_labels, backend=backend)
    anchors[labels < 0] = positives[labels < 0] = bank[bank_labels < 0] = value
    found = run(anchors, positives, bank, labels, bank_labels, backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_other_labels_and_layouts(backend):
    anchors, positives, bank, labels, bank_labels = problem(30, 41, 12)
    expected = run(anchors, positives, bank, labels, bank_labels, backend=backend)
    strided = [t.T.contiguous().T for t in (anchors, positives, bank)]
    for dtype in (torch.int8, torch.int16, torch.int32):
        got = run(*strided, labels.to(dtype), bank_labels.to(dtype), backend=backend)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-7)


def test_bank_may_change_before_the_backward_pass():
    anchors, positives, bank, *labels = problem(12, 20, 8)
    expected = run(anchors, positives, bank, *labels)[1]
    anchors.requires_grad_()
    loss = ops.patch_consistency(anchors, positives, bank, *labels)
    bank.zero_()
    loss.backward()
    torch.testing.assert_close(anchors.grad.double(), expected)


def test_no_second_derivative():
    anchors, *rest = problem(9, 12, 8)
    anchors.requires_grad_()
    loss = ops.patch_consistency(anchors, *rest)
    (gradient,) = torch.autograd.grad(loss, anchors, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative"):
        gradient.sum().backward()


def test_no_forward_mode():
    tensors = problem(9, 12, 8)
    for place in range(3):

        def loss(rows, place=place):
            return ops.patch_consistency(*tensors[:place], rows, *tensors[place + 1 :])

        with pytest.raises(NotImplementedError, match="patch_consistency has no forward-mode"):
            torch.func.jvp(loss, (tensors[place],), (tensors[place],))


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast(backend):
    anchors, positives, bank, *labels = problem(20, 30, 16)
    with torch.autocast("cpu", torch.bfloat16):
        loss, gradient = run(anchors, positives, bank, *labels, backend=backend)
    low = [t.to(torch.bfloat16) for t in (anchors, positives, bank)]
    expected, slope = run(*low, *labels, backend=backend)
    assert loss == expected and torch.equal(gradient, slope)
    with torch.autocast("cpu", torch.bfloat16):  # a layer's output beside a bank of float32
        loss, gradient = run(*low[:2], bank, *labels, backend=backend)
    assert loss == expected and torch.equal(gradient, slope)
    with pytest.raises(ValueError, match="bank must be as anchors"):
        run(*low[:2], bank, *labels, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck(backend):
    for n, m, weights in ((9, 12, torch.rand(9)), (0, 5, None)):
        anchors, *rest = problem(n, m, 8)
        opcheck(
            torch.ops.pipa_fast.patch_consistency.default,
            (anchors.requires_grad_(), *rest, weights, 0.1, "", backend),
        )


@pytest.mark.parametrize(
    "compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
)
def test_compile(compiler):
    anchors, *rest = problem(20, 30, 8)

    def step(x):
        return ops.patch_consistency(F.normalize(x, dim=1), *rest, weights=torch.ones(20)) * 2

    eager, compiled = (anchors.clone().requires_grad_() for _ in range(2))
    loss = torch.compile(step, fullgraph=True, backend=compiler)(compiled)
    loss.backward()
    expected = step(eager)
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(compiled.grad, eager.grad)


@pytest.mark.parametrize("dynamic", [None, True])
def test_compile_leaves_lengths_and_temperature_open(dynamic):
    compiled = torch.compile(
        ops.patch_consistency, fullgraph=True, backend="aot_eager", dynamic=dynamic
    )
    for n, temperature in ((20, 0.1), (10, 0.2), (30, 0.01)):
        args = problem(n, n + 5, 8)
        found, expected = (
            f(*args, temperature=temperature) for f in (compiled, ops.patch_consistency)
        )
        torch.testing.assert_close(found, expected)


def test_constants_must_be_detached():
    anchors, positives, bank, *labels = problem(6, 7, 8)
    for name in ("positives", "bank"):
        args = {"positives": positives, "bank": bank}
        args[name] = args[name].clone().requires_grad_()
        with pytest.raises(ValueError, match=rf"{name} must be .*{name}\.detach\(\)"):
            ops.patch_consistency(anchors, args["positives"], args["bank"], *labels)


def test_bad_arguments():
    a, p, k, labels, bank_labels = problem(6, 7, 8)
    bad = [
        ("anchors", (a[0], p, k, labels, bank_labels), {}),
        ("positives", (a, p[:5], k, labels, bank_labels), {}),
        ("positives", (a, p.double(), k, labels, bank_labels), {}),
        ("bank", (a, p, k[:, :4], labels, bank_labels), {}),
        ("bank", (a, p, k.half(), labels, bank_labels), {}),
        ("anchor_labels", (a, p, k, labels[:5], bank_labels), {}),
        ("bank_labels", (a, p, k, labels, bank_labels[:5]), {}),
        ("bank_labels", (a, p, k, labels, bank_labels.float()), {}),
        ("weights", (a, p, k, labels, bank_labels), {"weights": torch.ones(7)}),
        ("temperature", (a, p, k, labels, bank_labels), {"temperature": -1.0}),
        ("group must be", (a, p, k, labels, bank_labels), {"group": "nope"}),
        ("backend", (a, p, k, labels, bank_labels), {"backend": "fast"}),
    ]
    for name, args, settings in bad:
        with pytest.raises(ValueError, match=name):
            ops.patch_consistency(*args, **settings)
