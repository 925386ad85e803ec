# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy of logits upsampled to the labels' size, a band of rows at a time."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pipa_fast.checks import require
from pipa_fast.ops._bands import bands, upsample, upsample_transposed
from pipa_fast.ops._checks import check_float, check_rank, integers, pixel_weights
from pipa_fast.ops.backends import LIBRARY, kernel_range, refuse_second_derivative


def upsampled_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    weights: Tensor | None = None,
    ignore_index: int = 255,
    average: Literal["valid", "all"] = "valid",
) -> Tensor:
    """Upsample logits to the labels (bilinear, align_corners=False) and take the cross-entropy.

    The full-size logits are never stored, neither here nor for the backward pass, which upsamples
    again.

    Args:
        logits: [B, K, h, w] float; taken as they are under autocast.
        labels: [B, H, W] integers in 0 … K - 1, or `ignore_index`.
        weights: [B, H, W], a constant, each pixel's factor. They do not enter the divisor, so that
            a uniform weight scales the loss.
        average: "valid" divides the sum by the number of pixels that are not ignored, "all" by the
            number of pixels, as DAFormer and its descendants do.

    Returns:
        The loss [] in nats as float32 (float64 for float64); 0 with zero gradient where every
        pixel is ignored.

    Raises:
        ValueError: a shape, dtype or device that does not fit, or an unknown average.
    """
    check_float("logits", logits)
    check_rank("logits", logits, "B K h w")
    check_rank("labels", labels, "B H W")
    shape = (logits.shape[0], *labels.shape[1:])
    require(min(logits.shape[1:]) > 0, "logits", tuple(logits.shape), "[B, K, h, w], K, h, w > 0")
    labels = integers("labels", labels, logits, shape)
    wide = torch.promote_types(logits.dtype, torch.float32)
    weights = pixel_weights(weights, logits, shape, wide)
    require(average in ("valid", "all"), "average", average, '"valid" or "all"')
    loss, _ = torch.ops.pipa_fast.upsampled_cross_entropy(
        logits, labels, weights, ignore_index, average == "all"
    )
    return loss


LIBRARY.define(
    "upsampled_cross_entropy(Tensor logits, Tensor labels, Tensor? weights, int ignore_index,"
    " bool all_pixels) -> (Tensor loss, Tensor count)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.define(
    "upsampled_cross_entropy_backward(Tensor grad, Tensor logits, Tensor labels, Tensor? weights,"
    " Tensor count, int ignore_index) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _forward(
    logits: Tensor, labels: Tensor, weights: Tensor | None, ignore_index: int, all_pixels: bool
) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(logits.dtype, torch.float32)
    size = (labels.shape[1], labels.shape[2])
    loss = logits.new_zeros((), dtype=dtype)
    with kernel_range("upsampled_cross_entropy", logits.device):
        for band in bands(logits.shape, size, loss):
            full = upsample(logits, band, size[1])
            own = labels[:, band.rows]
            if weights is None:
                loss += F.cross_entropy(full, own, ignore_index=ignore_index, reduction="sum")
            else:
                each = F.cross_entropy(full, own, ignore_index=ignore_index, reduction="none")
                loss += (each * weights[:, band.rows]).sum()
        count = torch.full_like(loss, labels.numel())
        if not all_pixels:
            count = (labels != ignore_index).sum().to(dtype)
        count = count.clamp(min=1)
        return loss / count, count


def _backward(
    grad: Tensor,
    logits: Tensor,
    labels: Tensor,
    weights: Tensor | None,
    count: Tensor,
    ignore_index: int,
) -> Tensor:
    size, width = (labels.shape[1], labels.shape[2]), logits.shape[3]
    gradient = logits.new_zeros(logits.shape, dtype=count.dtype)
    scale = grad / count
    with kernel_range("upsampled_cross_entropy_backward", logits.device):
        for band in bands(logits.shape, size, count):
            own = labels[:, None, band.rows]
            valid = own != ignore_index
            factor = scale * valid
            if weights is not None:
                factor = factor * weights[:, None, band.rows]
            # softmax minus one at the label, times each pixel's factor, in one buffer
            slope = upsample(logits, band, size[1]).softmax(1).mul_(factor)
            slope.scatter_add_(1, own.masked_fill(~valid, 0), -factor)
            gradient[:, :, band.source] += upsample_transposed(slope, band, width)
    return gradient.to(logits.dtype)


def _fake_forward(logits: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    loss = logits.new_empty((), dtype=torch.promote_types(logits.dtype, torch.float32))
    return loss, torch.empty_like(loss)


def _fake_backward(grad: Tensor, logits: Tensor, *_: Any) -> Tensor:
    return logits.new_empty(logits.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, labels, weights, ctx.ignore_index, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(logits, labels, weights, output[1])


def _gradient(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    gradient = None
    if grad is not None and ctx.needs_input_grad[0]:
        gradient = torch.ops.pipa_fast.upsampled_cross_entropy_backward(
            grad, *ctx.saved_tensors, ctx.ignore_index
        )
    return gradient, None, None, None, None


LIBRARY.impl("upsampled_cross_entropy", _forward, "CompositeExplicitAutograd")
LIBRARY.impl("upsampled_cross_entropy_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("pipa_fast::upsampled_cross_entropy", _fake_forward, lib=LIBRARY)
torch.library.register_fake(
    "pipa_fast::upsampled_cross_entropy_backward", _fake_backward, lib=LIBRARY
)
torch.library.register_autograd(
    "pipa_fast::upsampled_cross_entropy", _gradient, setup_context=_setup_context, lib=LIBRARY
)
refuse_second_derivative("upsampled_cross_entropy_backward")
