# SPDX-License-Identifier: Apache-2.0
"""A contrast's loss and gradient on some backend, beside the reference's in the same dtype."""

import torch
import torch.nn.functional as F

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-4, torch.float16: 1e-4}


def rows(n, d, dtype=torch.float32):
    return F.normalize(torch.randn(n, d, dtype=torch.float64), dim=1).to(dtype)


def run(op, x, *rest, **settings):
    """Loss and gradient by the first argument, both in float64."""
    x = x.detach().requires_grad_()
    loss = op(x, *rest, **settings)
    (gradient,) = torch.autograd.grad(loss, x)
    assert gradient.dtype == x.dtype and gradient.shape == x.shape
    assert loss.dtype == torch.promote_types(x.dtype, torch.float32) and loss.shape == ()
    return loss.detach().double(), gradient.double()


def check(op, backend, args, **settings):
    """At most a tenth worse than the reference is in this dtype, and the same direction."""
    loss, gradient = run(op, *args, backend=backend, **settings)
    same_loss, same_gradient = run(op, *args, backend="reference", **settings)
    wide = [t.double() if t.is_floating_point() else t for t in args]
    true_loss, truth = run(op, *wide, backend="reference", **settings)
    allowed, n = TOLERANCE[args[0].dtype], len(args[0])
    bar = 1.1 * (same_loss - true_loss).abs() + allowed * (1 + true_loss.abs())
    assert (loss - true_loss).abs() <= bar
    size = truth.norm()
    # what the parts of a gradient add up to before they cancel, as they do for a few rows
    parts = 0.1 / (settings.get("temperature", 0.1) * max(1, n) ** 0.5)
    if size == 0:
        assert gradient.abs().sum() == 0
        return
    error = (gradient - truth).norm()
    assert error <= 1.1 * (same_gradient - truth).norm() + allowed * max(size, parts)
    worst = max(truth.abs().max(), parts / n**0.5)
    largest = (same_gradient - truth).abs().max()
    assert (gradient - truth).abs().max() <= 1.1 * largest + 4 * allowed * worst
    cosine = F.cosine_similarity(gradient.flatten(), truth.flatten(), dim=0)
    assert size < 1e-2 * parts or cosine > 1 - 1e-4
