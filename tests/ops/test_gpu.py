# SPDX-License-Identifier: Apache-2.0
"""The ops on a GPU, by every backend that it has: what the other files here show on a CPU."""

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

from pipa_fast import ops
from pipa_fast.ops.backends import Problem, triton_why_not
from pipa_fast.reference.pixel_contrast import Settings
from tests.csrc.two_ranks import errors, two_ranks

DEVICE = torch.device("cuda")
NO_TRITON = triton_why_not(Problem("cuda"))
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

# dtype: relative errors of value and gradient, given the same rounded inputs
BOUNDS = {torch.float32: (1e-5, 2e-5), torch.bfloat16: (1e-5, 4e-3), torch.float16: (1e-5, 1e-3)}


def rows(n, d, dtype):
    return F.normalize(torch.randn(n, d, device=DEVICE), dim=1).to(dtype)


def labels(*shape):
    drawn = torch.randint(0, 19, shape, device=DEVICE)
    return drawn.masked_fill(torch.rand(shape, device=DEVICE) < 0.1, 255)


def few_rows(dtype):
    y = labels(701)  # no multiple of 4: what is stored behind it would not be aligned
    return rows(701, 64, dtype), lambda x: ops.pixel_contrast(x, y)


def many_rows(dtype):
    y, weights = labels(5001), torch.rand(5001, device=DEVICE)
    return rows(5001, 100, dtype), lambda x: ops.pixel_contrast(
        x, y, weights=weights, denominator="all"
    )


def patches(dtype):
    near, bank = rows(900, 128, dtype), rows(3000, 128, dtype)
    given = [torch.randint(-1, 19, (count,), device=DEVICE) for count in (900, 3000)]
    weights = torch.rand(900, device=DEVICE)
    return rows(900, 128, dtype), lambda x: ops.patch_consistency(
        x, near.to(x.dtype), bank.to(x.dtype), *given, weights=weights
    )


def maps(dtype):
    y, weights = labels(2, 64, 96), torch.rand(2, 64, 96, device=DEVICE)
    logits = 3 * torch.randn(2, 19, 16, 24, device=DEVICE)
    return logits.to(dtype), lambda x: ops.upsampled_cross_entropy(x, y, weights=weights)


CALLS = {
    "few rows": ("pixel_contrast", few_rows),
    "many rows": ("pixel_contrast", many_rows),
    "patches": ("patch_consistency", patches),
    "maps": ("upsampled_cross_entropy", maps),
}
EACH = pytest.mark.parametrize(
    ("make", "backend"),
    [
        pytest.param(make, backend, id=f"{name}, {backend}")
        for name, (op, make) in CALLS.items()
        for backend in ops.backends(op, DEVICE)
    ],
)


def step(run, x):
    """A training step's part: the loss and its gradient."""
    loss = run(x)
    return loss.detach(), torch.autograd.grad(loss, x)[0]


@EACH
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_value_and_gradient(monkeypatch, make, backend, dtype):
    x, run = make(dtype)
    expected, truth = step(run, x.double().requires_grad_())  # float64 is the reference's
    monkeypatch.setenv("PIPA_FAST_BACKEND", backend)
    loss, gradient = step(run, x.requires_grad_())
    assert loss.dtype == torch.float32 and gradient.dtype == dtype
    bound, gradient_bound = BOUNDS[dtype]
    torch.testing.assert_close(loss.double(), expected, rtol=bound, atol=1e-7)
    assert (gradient.double() - truth).norm() <= gradient_bound * truth.norm()


@EACH
def test_nothing_waits_for_the_device(monkeypatch, make, backend):
    monkeypatch.setenv("PIPA_FAST_BACKEND", backend)
    x, run = make(torch.bfloat16)
    step(run, x.requires_grad_())  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(run, x)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@EACH
def test_a_graph_of_it_is_replayed_on_other_rows(monkeypatch, make, backend):
    monkeypatch.setenv("PIPA_FAST_BACKEND", backend)
    x, run = make(torch.bfloat16)
    other, x = x.flip(0).clone().requires_grad_(), x.requires_grad_()
    expected = step(run, other)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step(run, x)
    with torch.no_grad():
        x.copy_(other)
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@EACH
def test_compiled_in_one_graph(monkeypatch, make, backend):
    monkeypatch.setenv("PIPA_FAST_BACKEND", backend)
    x, run = make(torch.bfloat16)
    expected = step(run, x.requires_grad_())
    torch.compiler.reset()  # the backend is a constant of what is compiled
    found = step(torch.compile(run, fullgraph=True), x)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("backend", ops.backends("pixel_contrast", DEVICE))
def test_what_the_op_promises_torch(backend):
    x, y = rows(61, 8, torch.float32).requires_grad_(), labels(61)
    given = (x, y, torch.rand(61, device=DEVICE), 0.1, "negatives", 255, "", backend)
    opcheck(torch.ops.pipa_fast.pixel_contrast.default, given)
    given = (x, x.detach().clone(), x.detach().clone(), y, y, None, 0.1, "", backend)
    opcheck(torch.ops.pipa_fast.patch_consistency.default, given)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", ops.backends("pixel_contrast", DEVICE))
def test_autocast_and_rows_that_are_not_contiguous(backend, half):
    x, y = rows(200, 64, torch.float32), labels(200)
    with torch.autocast(DEVICE.type, half):
        loss = ops.pixel_contrast(x.T.contiguous().T, y, backend=backend)
    torch.testing.assert_close(loss, ops.pixel_contrast(x.to(half), y, backend=backend))


@pytest.mark.parametrize("backend", ops.backends("pseudo_labels", DEVICE))
def test_pseudo_labels(monkeypatch, backend):
    logits = 3 * torch.randn(2, 19, 16, 24, device=DEVICE)
    monkeypatch.setenv("PIPA_FAST_BACKEND", backend)
    found, confidence, share = ops.pseudo_labels(logits, size=(64, 96), threshold=0.9)
    full = F.interpolate(logits.double(), (64, 96), mode="bilinear", align_corners=False)
    odds, best = full.softmax(1).max(1)
    torch.testing.assert_close(confidence.double(), odds, rtol=1e-5, atol=0)
    torch.testing.assert_close(share.double(), (odds >= 0.9).double().mean(), rtol=0, atol=1e-3)
    assert (found == best).double().mean() > 0.9999


@pytest.mark.skipif(bool(NO_TRITON), reason=f"the triton backend cannot run: {NO_TRITON}")
@pytest.mark.parametrize("form", ["negatives", "all"])
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_triton_with_rows_of_another_rank(dtype, form):
    """The kernels that one rank alone does not run."""
    from pipa_fast.kernels import _pixel_contrast_ranks as kernels

    x, settings = rows(1500, 90, dtype), Settings(0.1, form, 255)
    cases = two_ranks(x, labels(1500), 900, settings)
    for name, found, same, truth in errors(kernels, cases, settings):
        error, floor = ((v.double() - truth).norm() for v in (found, same))
        allowed = BOUNDS[dtype][name == "pulls"]
        assert error <= 1.1 * floor + allowed * truth.norm() + 1e-6, name


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@EACH
def test_on_a_gpu_that_is_not_the_current_one(monkeypatch, make, backend):
    monkeypatch.setenv("PIPA_FAST_BACKEND", backend)
    monkeypatch.setitem(globals(), "DEVICE", torch.device("cuda", 1))
    x, run = make(torch.bfloat16)
    expected, truth = step(run, x.float().requires_grad_())
    loss, gradient = step(run, x.requires_grad_())
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6)
    assert (gradient.float() - truth).norm() <= 1e-2 * truth.norm()
    assert gradient.device == DEVICE and torch.cuda.current_device() == 0
