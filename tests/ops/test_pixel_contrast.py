# SPDX-License-Identifier: Apache-2.0
"""Every backend of pixel contrast against the float64 reference, and what the op promises."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

from pipa_fast import ops
from tests.equations import one_against_all
from tests.ops import beside_reference
from tests.ops.beside_reference import rows

BACKENDS = ops.backends("pixel_contrast", "cpu")
run = functools.partial(beside_reference.run, ops.pixel_contrast)
check = functools.partial(beside_reference.check, ops.pixel_contrast)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("denominator", ["negatives", "all"])
@pytest.mark.parametrize(
    ("n", "d", "dtype"),
    [
        (128, 64, torch.float32),
        (131, 64, torch.float32),
        (67, 5, torch.float32),
        (33, 512, torch.float32),
        (40, 511, torch.bfloat16),
        (65, 8, torch.bfloat16),
        (65, 19, torch.float16),
        (12, 1, torch.float32),
    ],
)
def test_sizes_and_dtypes(backend, denominator, n, d, dtype):
    labels = torch.randint(0, 5, (n,))
    labels[3], labels[7] = 255, 77
    weights = torch.rand(n)
    check(backend, (rows(n, d, dtype), labels), denominator=denominator)
    check(backend, (rows(n, d, dtype), labels), denominator=denominator, weights=weights)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("denominator", ["negatives", "all"])
@pytest.mark.parametrize(
    "labels",
    [[], [3], [1, 1], [1, 2], [255, 255, 255], [4] * 9, [0, 1, 2, 3], [0, 0, 1], [-3, -3, 9, 1000]],
    ids=str,
)
def test_degenerate(backend, denominator, labels):
    x = rows(len(labels), 8)
    check(backend, (x, torch.tensor(labels, dtype=torch.int64)), denominator=denominator)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("denominator", ["negatives", "all"])
@pytest.mark.parametrize("n", [2, 3, 40, 200])
def test_a_row_far_from_all_others(backend, denominator, n):
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        for temperature in (2 / 80, 0.1):
            x, labels = one_against_all(n, dtype)
            labels = labels * (n > 2)
            settings = {"temperature": temperature, "denominator": denominator}
            loss, gradient = run(x, labels, backend=backend, **settings)
            same = run(x, labels, backend="reference", **settings)[1]
            expected, truth = run(x.double(), labels, backend="reference", **settings)
            torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
            # The terms, each 1 / temperature large, nearly cancel where rows are few.
            allowed = 1.1 * (same - truth).norm() + 1e-5 / temperature
            assert (gradient - truth).norm() <= allowed


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("denominator", ["negatives", "all"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30])
def test_weights_of_rows_that_are_no_anchors_may_be_anything(backend, denominator, value):
    x, labels, weights = rows(60, 16), torch.arange(60) % 3, torch.rand(60)
    labels[7], labels[50] = 255, 9  # who is alone in its class is no anchor either
    weights[7] = weights[50] = 0
    settings = {"denominator": denominator, "backend": backend}
    expected = run(x, labels, weights=weights, **settings)
    for row in (7, 50):
        strange = weights.index_fill(0, torch.tensor(row), value)
        found = run(x, labels, weights=strange, **settings)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_to_sum_is_zero_in_the_graph(backend):
    for labels, weights in (([255] * 4, None), ([0, 1, 2, 3], None), ([0] * 4, torch.zeros(4))):
        x = rows(4, 8).requires_grad_()
        loss = ops.pixel_contrast(x, torch.tensor(labels), weights=weights, backend=backend)
        loss.backward()
        assert loss.item() == 0 and x.grad.abs().max() == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_other_labels_and_layouts(backend):
    x = rows(60, 12)
    labels = torch.randint(0, 4, (60,))
    expected = run(x, labels, backend=backend)
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16):
        assert run(x, labels.to(dtype), backend=backend)[0] == expected[0]
    spread = torch.randn(12, 120)
    spread[:, ::2] = x.T
    loss, gradient = run(spread[:, ::2].T, labels, backend=backend)
    torch.testing.assert_close((loss, gradient), expected, rtol=1e-5, atol=1e-7)
    # labels and weights with strides
    wide, half = labels.repeat_interleave(2)[::2], torch.ones(120)[::2]
    loss, gradient = run(x, wide, weights=half, backend=backend)
    torch.testing.assert_close((loss, gradient), expected)
    ignored = torch.where(labels == 2, -1, labels)
    assert (
        run(x, ignored, ignore_index=-1, backend=backend)[0]
        == run(x, torch.where(labels == 2, 255, labels), backend=backend)[0]
    )


def test_gradient_only_where_wanted():
    x, labels = rows(10, 8), torch.randint(0, 2, (10,))
    assert not ops.pixel_contrast(x, labels).requires_grad
    with torch.no_grad():
        assert not ops.pixel_contrast(x.clone().requires_grad_(), labels).requires_grad
    scaled = x.clone().requires_grad_()
    (3 * ops.pixel_contrast(scaled, labels)).backward()
    torch.testing.assert_close(scaled.grad.double(), 3 * run(x, labels)[1])


def test_shapes_alone():
    x, labels = rows(10, 8).to("meta").requires_grad_(), torch.empty(10, device="meta").long()
    loss = ops.pixel_contrast(x, labels)
    loss.backward()
    assert loss.is_meta and x.grad is not None and x.grad.shape == x.shape


def test_no_second_derivative():
    x = rows(10, 8).requires_grad_()
    loss = ops.pixel_contrast(x, torch.randint(0, 2, (10,)))
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative"):
        gradient.sum().backward()


def test_no_forward_mode():
    x, labels = rows(10, 8), torch.randint(0, 2, (10,))
    with pytest.raises(NotImplementedError, match="pixel_contrast has no forward-mode"):
        torch.func.jvp(lambda x: ops.pixel_contrast(x, labels), (x,), (x,))
    with torch.autograd.forward_ad.dual_level():
        assert ops.pixel_contrast(x, labels) > 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast(backend):
    x, labels = rows(30, 16), torch.randint(0, 3, (30,))
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            loss, gradient = run(x, labels, backend=backend)
        expected, slope = run(x.to(dtype), labels, backend=backend)
        assert loss == expected
        torch.testing.assert_close(gradient, slope, rtol=0, atol=0)
        with torch.autocast("cpu", dtype):
            # float64 stays float64, and what is inside an op is not cast
            exact = run(x.double(), labels)[0]
        assert exact == run(x.double(), labels)[0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("denominator", ["negatives", "all"])
def test_opcheck(backend, denominator):
    for n, weights in ((9, torch.rand(9)), (0, None)):
        opcheck(
            torch.ops.pipa_fast.pixel_contrast.default,
            (
                rows(n, 8).requires_grad_(), torch.randint(0, 3, (n,)), weights,
                0.1, denominator, 255, "", backend,
            ),
        )  # fmt: skip


@pytest.mark.parametrize(
    "compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
)
def test_compile(compiler):
    def step(x, labels):
        return ops.pixel_contrast(F.normalize(x, dim=1), labels, denominator="all") * 2

    x, labels = torch.randn(40, 8), torch.randint(0, 3, (40,))
    eager, compiled = (x.clone().requires_grad_() for _ in range(2))
    loss = torch.compile(step, fullgraph=True, backend=compiler)(compiled, labels)
    loss.backward()
    expected = step(eager, labels)
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(compiled.grad, eager.grad)


@pytest.mark.parametrize("dynamic", [None, True])
def test_compile_leaves_lengths_and_temperature_open(dynamic):
    def loss(x, labels, temperature):
        return ops.pixel_contrast(x, labels, temperature=temperature)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for n, temperature in ((40, 0.1), (30, 0.2), (50, 0.01)):
        x, labels = F.normalize(torch.randn(n, 8), dim=1), torch.randint(0, 3, (n,))
        found, expected = (f(x, labels, temperature) for f in (compiled, loss))
        torch.testing.assert_close(found, expected)


def test_bad_arguments():
    x, labels = rows(6, 8), torch.zeros(6, dtype=torch.int64)
    bad = [
        ("features", (x[0], labels), {}),
        ("features", (rows(6, 513), labels), {}),
        ("features", (x[:, :0], labels), {}),
        ("features", (x.to(torch.int32), labels), {}),
        ("labels", (x, labels[:5]), {}),
        ("labels", (x, labels.float()), {}),
        ("labels", (x, labels.bool()), {}),
        ("labels", (x, labels.to("meta")), {}),
        ("weights", (x, labels), {"weights": torch.ones(5)}),
        ("weights", (x, labels), {"weights": torch.ones(6, requires_grad=True)}),
        ("temperature", (x, labels), {"temperature": 0.0}),
        ("temperature", (x, labels), {"temperature": float("nan")}),
        ("temperature", (x, labels), {"temperature": True}),
        ("denominator", (x, labels), {"denominator": "some"}),
        ("group", (x, labels), {"group": 3}),
        ("group", (x, labels), {"group": ""}),
        ("group must be .*; got 'nope'", (x, labels), {"group": "nope"}),
        ("backend", (x, labels), {"backend": "fast"}),
    ]
    for name, args, settings in bad:
        with pytest.raises(ValueError, match=name):
            ops.pixel_contrast(*args, **settings)
