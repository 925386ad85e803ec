# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy of upsampled logits: upsample, then compare.

With x_p the logits upsampled to pixel p, y_p its label, w_p its weight and n the divisor:

    L = Σ_p w_p (log Σ_k exp x_pk - x_p,y_p) / n
    ∂L/∂x_pk = w_p (softmax(x_p)_k - [k = y_p]) / n

over pixels that are not ignored. Upsampling is linear: its transpose brings ∂L/∂x to the logits.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pipa_fast.checks import require


def upsampled_cross_entropy(
    logits: Tensor,  # [B, K, h, w]
    labels: Tensor,  # [B, H, W] int64
    *,
    weights: Tensor | None = None,  # [B, H, W]
    ignore_index: int = 255,
    average: str = "valid",
) -> Tensor:
    """Return the loss [] in nats as plain torch, differentiable by autograd: what tests compare."""
    full = F.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False)
    loss = F.cross_entropy(full, labels, ignore_index=ignore_index, reduction="none")
    if weights is not None:
        loss = loss * weights
    return loss.sum() / _divisor(labels, ignore_index, average == "all")


def forward(
    logits: Tensor,  # [B, K, h, w]
    labels: Tensor,  # [B, H, W] int64
    weights: Tensor | None,  # [B, H, W]
    ignore_index: int,
    all_pixels: bool,
    gradient: bool,
) -> tuple[Tensor, Tensor]:
    """Return the loss [] and its slope dL/dlogits [B, K, h, w], or an empty one, both wide."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if labels.numel() == 0:  # F.interpolate takes no empty batch, nor an empty size
        return wide.new_zeros(()), wide.new_zeros(wide.shape) if gradient else wide.new_empty(0)
    size = list(labels.shape[-2:])
    full = F.interpolate(wide, size, mode="bilinear", align_corners=False)
    log_odds = full.log_softmax(1)
    try:
        each = F.nll_loss(log_odds, labels, ignore_index=ignore_index, reduction="none")
    except IndexError:  # a CPU's; a GPU has an assertion of its own
        check_classes(labels, logits.shape[1], ignore_index)
        raise
    divisor = _divisor(labels, ignore_index, all_pixels)
    loss = (each if weights is None else each * weights).sum() / divisor
    if not gradient:
        return loss, wide.new_empty(0)
    valid = (labels != ignore_index)[:, None]
    # As wide as the loss: of a bool and an int torch makes a quotient of its default dtype.
    factor = valid.to(wide.dtype) / divisor
    if weights is not None:
        factor *= weights[:, None]
    slope = log_odds.exp_().mul_(factor).masked_fill_(~valid, 0)  # 0 · nan would be nan
    slope.scatter_add_(1, labels[:, None].masked_fill(~valid, 0), -factor)
    slope = torch.ops.aten.upsample_bilinear2d_backward(slope, size, list(wide.shape), False)
    return loss, slope.contiguous()


def check_classes(labels: Tensor, classes: int, ignore_index: int) -> None:
    """Raise ValueError for a label that is neither a class nor `ignore_index`; reads them all."""
    wrong = labels[(labels != ignore_index) & ((labels < 0) | (labels >= classes))]
    if wrong.numel():
        expected = f"classes 0 to {classes - 1} or ignore_index {ignore_index}"
        require(False, "labels", int(wrong[0]), expected)


def backward(grad: Tensor, logits: Tensor, slope: Tensor) -> Tensor:
    """Return dL/dlogits [B, K, h, w] in their dtype; the forward sweep has found the slope."""
    return (grad * slope).to(logits.dtype)


def _divisor(labels: Tensor, ignore_index: int, all_pixels: bool) -> Tensor:
    """Return how many pixels count [], at least 1."""
    if all_pixels:
        return torch.full((), max(labels.numel(), 1), device=labels.device)
    return (labels != ignore_index).sum().clamp(min=1)
