# SPDX-License-Identifier: Apache-2.0
"""The equations with all their matrices, by autograd in float64: what kernels are compared with."""

import torch
import torch.nn.functional as F

IGNORE = 255


def unit_rows(n, d):
    return F.normalize(torch.randn(n, d), dim=1)


def one_against_all(n, dtype):
    """Rows [n, 16] opposite to the first, and labels [n] such that most share no tile with it.

    What a row is compared with is as far from it as can be: its Z is as small as it may become.
    """
    side = unit_rows(1, 16)
    x = torch.cat([side, -side.expand(n - 1, 16)]).to(dtype)
    return x, (torch.arange(n) >= max(n // 2, n - 24)).long()


def pixel_contrast(x, labels, weights, temperature, form, dtype=torch.float64):
    """Loss, its gradient, and Z, with N x N matrices."""
    x = x.detach().to(dtype).requires_grad_()
    live = labels != IGNORE
    pairs = live[:, None] & live & ~torch.eye(len(x), dtype=torch.bool)
    same = labels[:, None] == labels
    positive, summed = pairs & same, pairs if form == "all" else pairs & ~same
    score = (x @ x.T - 1) / temperature
    log_z = score.masked_fill(~summed, -torch.inf).logsumexp(1, keepdim=True)
    loss = log_z - score if form == "all" else -F.logsigmoid(score - log_z)
    loss = loss.masked_fill(~positive | ~summed.any(1, keepdim=True), 0)
    count = positive.sum(1)
    share = (torch.ones(len(x)) if weights is None else weights).to(dtype) * (count > 0)
    share = share / share.sum() if share.any() else share
    total = (share * loss.sum(1) / count.clamp(min=1)).sum()
    (gradient,) = torch.autograd.grad(total + 0 * x.sum(), x)
    return total.detach(), gradient, log_z.detach().exp().squeeze(1)


def patch_consistency(anchors, positives, bank, anchor_labels, bank_labels, weights, temperature):
    """Loss and its gradient by the anchors."""
    anchors, positives, bank = (t.double() for t in (anchors, positives, bank))
    anchors.requires_grad_()
    weight = torch.ones_like(anchors[:, 0]) if weights is None else weights.double()
    weight = weight.detach() * (anchor_labels >= 0)
    negative = (anchor_labels[:, None] != bank_labels) & (bank_labels >= 0)
    z = (((anchors @ bank.T - 1) / temperature).exp() * negative).sum(1)
    e = (((anchors * positives).sum(1) - 1) / temperature).exp()
    share = weight / weight.sum() if weight.sum() > 0 else weight
    loss = (share * torch.log1p(z / e)).sum()
    (gradient,) = torch.autograd.grad(loss + 0 * anchors.sum(), anchors)
    return loss.detach(), gradient


def upsampled_cross_entropy(logits, labels, weights, ignore_index, all_pixels):
    """Loss and its gradient by the logits."""
    exact = logits.double().requires_grad_()
    full = F.interpolate(exact, labels.shape[1:], mode="bilinear", align_corners=False)
    valid = labels != ignore_index
    own = full.log_softmax(1).gather(1, (labels * valid)[:, None])[:, 0]
    weight = valid.double() if weights is None else valid * weights.double()
    count = labels.numel() if all_pixels else valid.sum().clamp(min=1)
    loss = -(weight * own).sum() / count
    return loss.detach(), torch.autograd.grad(loss, exact)[0]


def assert_gradient_close(gradient, expected, relative=2e-5, allowed=0.0):
    """Element by element, and as one vector: length, direction and bias.

    `allowed` is an error as a vector that is no fault, such as the reference's own in float32.
    """
    if not expected.numel():
        return
    difference, size = gradient.double() - expected, expected.norm()
    tolerance = relative * size + 1.1 * allowed
    assert difference.norm() <= tolerance
    assert difference.abs().amax() <= relative * expected.abs().amax() + 1.1 * allowed
    assert abs(difference.sum()) <= tolerance * expected.numel() ** 0.5
    if size > tolerance:
        assert (gradient.double() * expected).sum() > 0.999 * gradient.double().norm() * size
