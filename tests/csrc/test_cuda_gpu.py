# SPDX-License-Identifier: Apache-2.0
"""The CUDA C++ kernels where there is a GPU: what test_cuda.py shows of them without one."""

import pytest
import torch
import torch.nn.functional as F

from pipa_fast import ops
from pipa_fast.ops import _pixel_contrast_cuda as pixel
from pipa_fast.ops.backends import Problem, cuda_why_not
from pipa_fast.reference.pixel_contrast import Settings
from tests.csrc.two_ranks import errors, two_ranks

REASON = cuda_why_not(Problem(torch.device("cuda")))
pytestmark = pytest.mark.skipif(bool(REASON), reason=f"the cuda backend cannot run: {REASON}")

# dtype: relative errors of loss and gradient, given the same rounded rows
BOUNDS = {torch.bfloat16: (1e-5, 4e-3), torch.float16: (1e-5, 5e-4), torch.float32: (1e-5, 2e-5)}
SIZES = [(1, 8), (129, 64), (700, 90), (2400, 128), (1000, 256), (300, 512)]


def rows(n, d, dtype):
    return F.normalize(torch.randn(n, d, device="cuda"), dim=1).to(dtype).requires_grad_()


def check(dtype, loss, x, expected, wide):
    (gradient,), (truth,) = torch.autograd.grad(loss, x), torch.autograd.grad(expected, wide)
    loss_bound, gradient_bound = BOUNDS[dtype]
    torch.testing.assert_close(loss.double(), expected.to(loss.device), rtol=loss_bound, atol=1e-7)
    error = (gradient.double() - truth.to(gradient.device)).norm()
    assert error <= gradient_bound * truth.norm() + 1e-9


@pytest.mark.parametrize("dtype", list(BOUNDS))
@pytest.mark.parametrize("form", ["negatives", "all"])
@pytest.mark.parametrize(("n", "d"), SIZES)
def test_pixel_contrast(n, d, form, dtype):
    torch.manual_seed(0)
    x = rows(n, d, dtype)
    labels = torch.randint(0, 19, (n,), device="cuda")
    loss = ops.pixel_contrast(x, labels, denominator=form, backend="cuda")
    wide = x.detach().double().requires_grad_()
    check(dtype, loss, x, ops.pixel_contrast(wide, labels, denominator=form), wide)


@pytest.mark.parametrize("dtype", list(BOUNDS))
@pytest.mark.parametrize("form", ["negatives", "all"])
def test_pairs_with_rows_of_another_rank(form, dtype):
    torch.manual_seed(0)
    x, labels = rows(1500, 90, dtype).detach(), torch.randint(0, 19, (1500,), device="cuda")
    labels, settings = labels.masked_fill(labels == 3, 255), Settings(0.1, form, 255)
    cases = two_ranks(x, labels, 900, settings)
    for name, found, same, truth in errors(pixel, cases, settings):
        error, floor = ((v.double() - truth).norm() for v in (found, same))
        allowed = BOUNDS[dtype][name == "pulls"]
        assert error <= 1.1 * floor + allowed * truth.norm() + 1e-6, name


@pytest.mark.parametrize("dtype", list(BOUNDS))
@pytest.mark.parametrize(("n", "d"), SIZES)
def test_patch_consistency(n, d, dtype, temperature=0.1):
    torch.manual_seed(0)
    a, p, k = (rows(count, d, dtype) for count in (n, n, 1000))
    labels = [torch.randint(-1, 19, (count,), device="cuda") for count in (n, 1000)]
    given, settings = (p.detach(), k.detach()), {"temperature": temperature}
    loss = ops.patch_consistency(a, *given, *labels, **settings, backend="cuda")
    wide, others = a.detach().double().requires_grad_(), (other.double() for other in given)
    check(dtype, loss, a, ops.patch_consistency(wide, *others, *labels, **settings), wide)


def test_float16_at_a_temperature_that_its_exponents_do_not_span():
    test_patch_consistency(1000, 256, torch.float16, temperature=0.03)


@pytest.mark.parametrize(
    ("n", "d", "classes"),
    [(2400, 8, 19), (700, 64, 1), (300, 24, 1000)],  # the first in several launches
)
@pytest.mark.parametrize("form", ["negatives", "all"])
def test_pixel_contrast_of_weighted_and_ignored_rows(n, d, classes, form):
    torch.manual_seed(0)
    x, weights = rows(n, d, torch.bfloat16), torch.rand(n, device="cuda")
    labels = torch.randint(0, classes, (n,), device="cuda")
    labels = labels.masked_fill(torch.rand(n, device="cuda") < 0.1, 255)
    loss = ops.pixel_contrast(x, labels, weights=weights, denominator=form, backend="cuda")
    wide = x.detach().double().requires_grad_()
    given = {"weights": weights.double(), "denominator": form}
    check(torch.bfloat16, loss, x, ops.pixel_contrast(wide, labels, **given), wide)


def test_float32_by_single_products_where_torch_does_so(monkeypatch):
    """TF32's own errors: 2^-11 of a row's numbers."""
    monkeypatch.setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32")
    monkeypatch.setitem(BOUNDS, torch.float32, (1e-3, 5e-3))
    test_pixel_contrast(1000, 256, "negatives", torch.float32)
    test_patch_consistency(1000, 256, torch.float32)


@pytest.mark.parametrize("n", [0, 50])
def test_nothing_to_sum(n):
    x, none = rows(n, 16, torch.float32), torch.full((n,), 255, device="cuda")
    bank = rows(0, 16, torch.float32).detach()
    losses = (
        ops.pixel_contrast(x, none, backend="cuda"),
        ops.patch_consistency(x, x.detach(), bank, none, none[:0], backend="cuda"),
        ops.patch_consistency(x, x.detach(), x.detach(), -none, none, backend="cuda"),
    )
    for loss in losses:
        assert loss == 0 and not torch.autograd.grad(loss, x)[0].any()


def test_patch_consistency_of_weighted_anchors_whose_class_has_no_key():
    torch.manual_seed(0)
    a, p, k = (rows(count, 64, torch.float32) for count in (100, 100, 40))
    labels = torch.arange(100, device="cuda") // 50, torch.ones(40, device="cuda").long()
    weights = torch.rand(100, device="cuda")
    others = p.detach(), k.detach()
    loss = ops.patch_consistency(a, *others, *labels, weights=weights, backend="cuda")
    wide = a.detach().double().requires_grad_()
    given = (other.double() for other in others)
    expected = ops.patch_consistency(wide, *given, *labels, weights=weights.double())
    check(torch.float32, loss, a, expected, wide)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_autocast_and_rows_that_are_not_contiguous(half):
    torch.manual_seed(0)
    x, labels = rows(200, 64, torch.float32), torch.arange(200, device="cuda") % 5
    with torch.autocast("cuda", half):
        loss = ops.pixel_contrast(x.detach().T.contiguous().T, labels, backend="cuda")
    torch.testing.assert_close(loss, ops.pixel_contrast(x.to(half), labels, backend="cuda"))


def test_compiled_and_captured():
    """In one graph of torch.compile, and replayed as a CUDA graph: nothing waits for the host."""
    x, labels = rows(500, 64, torch.bfloat16), torch.arange(500, device="cuda") % 5

    def both():
        loss = ops.pixel_contrast(x, labels, backend="cuda")
        return loss, torch.autograd.grad(loss, x)[0]

    expected = both()
    compiled = torch.compile(
        lambda x: ops.pixel_contrast(x, labels, backend="cuda"), fullgraph=True
    )
    assert torch.equal(compiled(x), expected[0])
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        both()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = both()
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_operators_refuse_what_would_read_past_memory():
    kernels, x = torch.ops.pipa_fast_cuda, torch.zeros(10, 8, device="cuda")
    ints = torch.zeros(128, dtype=torch.int32, device="cuda")
    good = [x, ints, ints, ints[:1], x, ints[:1], False, 1.0, 3]
    assert kernels.pixel_contrast_denominators(*good).shape[1] == 128
    apart = torch.zeros(81, device="cuda")[1:].view(10, 8)  # of 16 bytes
    wrong = (0, x.T), (0, x.bfloat16()), (0, apart), (1, ints[:10]), (3, ints), (8, 4)
    wrong_keys = (
        (4, None),
        (4, x[:0]),
        (4, x.half()),
        (4, x.new_zeros(10, 16)),
        (5, None),
        (5, ints),
    )
    for place, bad in (*wrong, *wrong_keys):
        given = [bad if i == place else argument for i, argument in enumerate(good)]
        with pytest.raises(RuntimeError, match="must"):
            kernels.pixel_contrast_denominators(*given)


def test_it_repeats_bit_by_bit_on_any_stream():
    x, labels = rows(3000, 128, torch.bfloat16), torch.randint(0, 19, (3000,), device="cuda")
    found = []
    for stream in (torch.cuda.current_stream(), torch.cuda.Stream()):
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            loss = ops.pixel_contrast(x, labels, backend="cuda")
            found.append((loss.detach(), *torch.autograd.grad(loss, x)))
        torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
