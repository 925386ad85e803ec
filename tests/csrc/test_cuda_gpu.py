# SPDX-License-Identifier: Apache-2.0
"""The CUDA C++ kernels where there is a GPU: what test_cuda.py shows of them without one."""

import pytest
import torch
import torch.nn.functional as F

from pipa_fast import ops
from pipa_fast.ops.backends import Problem, cuda_why_not

REASON = cuda_why_not(Problem("cuda"))
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
@pytest.mark.parametrize(("n", "d"), SIZES)
def test_patch_consistency(n, d, dtype):
    torch.manual_seed(0)
    a, p, k = (rows(count, d, dtype) for count in (n, n, 1000))
    labels = [torch.randint(-1, 19, (count,), device="cuda") for count in (n, 1000)]
    loss = ops.patch_consistency(a, p.detach(), k.detach(), *labels, backend="cuda")
    wide = a.detach().double().requires_grad_()
    others = p.detach().double(), k.detach().double()
    check(dtype, loss, a, ops.patch_consistency(wide, *others, *labels), wide)


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
