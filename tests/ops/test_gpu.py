# SPDX-License-Identifier: Apache-2.0
"""The ops on a GPU, by every backend that it has: what the other files here show on a CPU."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

from pipa_fast import ops
from pipa_fast.ops.backends import Problem, triton_why_not
from pipa_fast.reference.pixel_contrast import Settings
from tests.csrc.two_ranks import errors, two_ranks
from tests.ops.test_waits import waits_refused

DEVICE = torch.device("cuda")
NO_TRITON = triton_why_not(Problem(torch.device("cuda")))
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

# dtype: relative errors of value and gradient, given the same rounded inputs
BOUNDS = {torch.float32: (1e-5, 2e-5), torch.bfloat16: (1e-5, 4e-3), torch.float16: (1e-5, 1e-3)}


def rows(n, d, dtype):
    return F.normalize(torch.randn(n, d, device=DEVICE), dim=1).to(dtype)


def labels(*shape):
    drawn = torch.randint(0, 19, shape, device=DEVICE)
    return drawn.masked_fill(torch.rand(shape, device=DEVICE) < 0.1, 255)


def contrast(n, d, form, weighted=False):
    def make(dtype):
        y, weights = labels(n), torch.rand(n, device=DEVICE) if weighted else None
        return rows(n, d, dtype), lambda x: ops.pixel_contrast(
            x, y, weights=weights, denominator=form
        )

    return make


def patches(dtype):
    near, bank = rows(900, 128, dtype), rows(3000, 128, dtype)
    given = [torch.randint(-1, 19, (count,), device=DEVICE) for count in (900, 3000)]
    weights = torch.rand(900, device=DEVICE)
    return rows(900, 128, dtype), lambda x: ops.patch_consistency(
        x, near.to(x.dtype), bank.to(x.dtype), *given, weights=weights
    )


def maps(h, w):
    def make(dtype):
        y, weights = labels(2, 4 * h, 4 * w), torch.rand(2, 4 * h, 4 * w, device=DEVICE)
        logits = 3 * torch.randn(2, 19, h, w, device=DEVICE)
        return logits.to(dtype), lambda x: ops.upsampled_cross_entropy(x, y, weights=weights)

    return make


CALLS = {
    # No multiples of 4: what is stored behind such rows would not be aligned.
    "few rows": ("pixel_contrast", contrast(701, 64, "negatives")),
    "few deep rows": ("pixel_contrast", contrast(701, 512, "all", weighted=True)),
    "many rows": ("pixel_contrast", contrast(5001, 100, "all", weighted=True)),
    "many rows of 256": ("pixel_contrast", contrast(5001, 256, "negatives")),
    "many rows of 512": ("pixel_contrast", contrast(5001, 512, "negatives", weighted=True)),
    # 20 shifts of tiles around their circle, of which a launch takes 8
    "many rows of 8": ("pixel_contrast", contrast(5001, 8, "negatives")),
    "patches": ("patch_consistency", patches),
    "maps": ("upsampled_cross_entropy", maps(17, 25)),
    "whole images": ("upsampled_cross_entropy", maps(256, 512)),
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


def assert_same(found, expected, backend):
    """Bit by bit; but torch adds up the gradient of an upsampled map in any order."""
    tolerance = {} if backend == "reference" else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(found, expected, **tolerance)


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
    # Of many rows the gradient's elements are so small that float16 holds only some bits of them.
    rounding = (truth.to(dtype).double() - truth).norm()
    assert (gradient.double() - truth).norm() <= rounding + gradient_bound * truth.norm()


@EACH
def test_repeats_bit_by_bit(monkeypatch, make, backend):
    """Nothing depends on which program comes first."""
    monkeypatch.setenv("PIPA_FAST_BACKEND", backend)
    x, run = make(torch.bfloat16)
    first = step(run, x.requires_grad_())
    for _ in range(20):
        assert_same(step(run, x), first, backend)


@EACH
def test_rows_at_any_address(monkeypatch, make, backend):
    monkeypatch.setenv("PIPA_FAST_BACKEND", backend)
    x, run = make(torch.bfloat16)
    expected, truth = step(run, x.requires_grad_())
    moved = x.new_empty(x.numel() + 1)[1:].view(x.shape).copy_(x.detach())
    assert moved.data_ptr() % 4
    loss, gradient = step(run, moved.requires_grad_())
    torch.testing.assert_close(loss, expected)
    assert (gradient.double() - truth.double()).norm() <= 1e-3 * truth.double().norm()


@pytest.fixture
def tf32():
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "tf32"
    yield
    matmul.fp32_precision = before


@EACH
@pytest.mark.usefixtures("tf32")
def test_float32_is_as_exact_as_torch_with_tf32(monkeypatch, make, backend):
    x, run = make(torch.float32)
    truth = step(run, x.double().requires_grad_())
    found = []
    for name in ("reference", backend):
        monkeypatch.setenv("PIPA_FAST_BACKEND", name)
        found.append(step(run, x.requires_grad_()))
    for expected, same, ours in zip(truth, *found, strict=True):
        floor, error = ((v.double() - expected).norm() for v in (same, ours))
        assert error <= 1.1 * floor + 1e-3 * expected.norm()


def loss_of_copies(x, y, copies, temperature):
    """The contrast of rows that are there so many times each; by the rows, all of them."""
    scores, same = (x @ x.T - 1) / temperature, y[:, None] == y
    log_z = scores.masked_fill(same, -torch.inf).logsumexp(1, keepdim=True) + math.log(copies)
    pairs = copies * same.double() - torch.eye(len(x), device=x.device)
    return ((pairs * F.softplus(log_z - scores)).sum(1) / pairs.sum(1)).mean()


@pytest.mark.parametrize("backend", ops.backends("pixel_contrast", DEVICE))
def test_as_many_rows_as_images_have(backend, copies=131):
    x, y = rows(1000, 256, torch.bfloat16), torch.randint(0, 19, (1000,), device=DEVICE)
    expected, truth = step(lambda x: loss_of_copies(x, y, copies, 0.1), x.double().requires_grad_())
    many, all_y = x.repeat(copies, 1).requires_grad_(), y.repeat(copies)
    loss, gradient = step(lambda x: ops.pixel_contrast(x, all_y, backend=backend), many)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    error = gradient.double().view(copies, *x.shape) * copies - truth
    assert (error.flatten(1).norm(dim=1) <= 1e-2 * truth.norm()).all()


@EACH
def test_nothing_waits_for_the_device(monkeypatch, make, backend):
    monkeypatch.setenv("PIPA_FAST_BACKEND", backend)
    x, run = make(torch.bfloat16)
    step(run, x.requires_grad_())  # compiles
    with waits_refused():
        step(run, x)


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
    assert_same(found, expected, backend)


@EACH
def test_compiled_in_one_graph(monkeypatch, make, backend):
    monkeypatch.setenv("PIPA_FAST_BACKEND", backend)
    x, run = make(torch.bfloat16)
    expected = step(run, x.requires_grad_())
    torch.compiler.reset()  # the backend is a constant of what is compiled
    found = step(torch.compile(run, fullgraph=True), x)
    assert_same(found, expected, backend)


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


@pytest.mark.parametrize(
    ("small", "size"), [((16, 24), (64, 96)), ((1, 1), (1, 1)), ((256, 512), (1024, 2048))]
)
@pytest.mark.parametrize("backend", ops.backends("pseudo_labels", DEVICE))
def test_pseudo_labels(monkeypatch, backend, small, size):
    logits = 3 * torch.randn(2, 19, *small, device=DEVICE)
    monkeypatch.setenv("PIPA_FAST_BACKEND", backend)
    found, confidence, share = ops.pseudo_labels(logits, size=size, threshold=0.9)
    full = F.interpolate(logits.double(), size, mode="bilinear", align_corners=False)
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
