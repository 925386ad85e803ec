# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy of logits upsampled to the labels' size, in one sweep over the pixels."""

from typing import Any, Literal

import torch
from torch import Tensor

from pipa_fast.checks import require
from pipa_fast.ops._checks import check_float, check_label, check_rank, integers, pixel_weights
from pipa_fast.ops.backends import (
    LIBRARY,
    Backend,
    Problem,
    choose,
    contiguous,
    cpu_why_not,
    implement,
    reference_why_not,
    refuse_forward_mode,
    refuse_second_derivative,
    triton_backend,
)
from pipa_fast.reference import upsampled_cross_entropy as reference


def upsampled_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    weights: Tensor | None = None,
    ignore_index: int = 255,
    average: Literal["valid", "all"] = "valid",
) -> Tensor:
    """Upsample logits to the labels (bilinear, align_corners=False) and take the cross-entropy.

    But for the reference backend, the full-size logits are never stored. The gradient by the small
    logits is found on the way, where it is wanted, and is what waits for the backward pass.

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
        ValueError: a shape, dtype or device that does not fit, an unknown average, or, on a CPU, a
            label that is neither a class nor `ignore_index`. On a GPU such a label fails an
            assertion there, as torch's own loss, which a later call tells of.
    """
    check_float("logits", logits)
    check_rank("logits", logits, "B K h w")
    check_rank("labels", labels, "B H W")
    shape = (logits.shape[0], *labels.shape[1:])
    require(min(logits.shape[1:]) > 0, "logits", tuple(logits.shape), "[B, K, h, w], K, h, w > 0")
    labels = integers("labels", labels, logits, shape)
    weights = pixel_weights(weights, logits, shape)
    check_label("ignore_index", ignore_index)
    require(average in ("valid", "all"), "average", average, '"valid" or "all"')
    refuse_forward_mode("upsampled_cross_entropy", logits, weights)
    problem = Problem(logits.device, logits.dtype)
    backend = choose("upsampled_cross_entropy", BACKENDS, problem, None)
    gradient = logits.requires_grad and torch.is_grad_enabled()
    loss, _ = torch.ops.pipa_fast.upsampled_cross_entropy(
        logits, labels, weights, ignore_index, average == "all", gradient, backend
    )
    return loss


# The slope is dloss/dlogits [B, K, h, w], as wide as the loss; empty without `gradient`.
LIBRARY.define(
    "upsampled_cross_entropy(Tensor logits, Tensor labels, Tensor? weights, int ignore_index,"
    " bool all_pixels, bool gradient, str backend) -> (Tensor loss, Tensor slope)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.define(
    "upsampled_cross_entropy_backward(Tensor grad, Tensor logits, Tensor slope, str backend)"
    " -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _cpu_forward(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor | None,
    ignore_index: int,
    all_pixels: bool,
    gradient: bool,
) -> tuple[Tensor, Tensor]:
    try:
        return torch.ops.pipa_fast_cpu.upsampled_cross_entropy_forward(
            *contiguous(logits, labels, weights), ignore_index, all_pixels, gradient, ""
        )
    except RuntimeError:
        reference.check_classes(labels, logits.shape[1], ignore_index)
        raise


BACKENDS = (
    triton_backend("upsampled_cross_entropy")._replace(backward=reference.backward),
    Backend("cpu", cpu_why_not, _cpu_forward, reference.backward),
    Backend("reference", reference_why_not, reference.forward, reference.backward),
)


def _fake_forward(logits: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    gradient = rest[-2]
    dtype = torch.promote_types(logits.dtype, torch.float32)
    shape = logits.shape if gradient else (0,)
    return logits.new_empty((), dtype=dtype), logits.new_empty(shape, dtype=dtype)


def _fake_backward(grad: Tensor, logits: Tensor, *_: Any) -> Tensor:
    return logits.new_empty(logits.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, *_, ctx.gradient, ctx.backend = inputs
    slope = output[1]
    ctx.mark_non_differentiable(slope)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(logits, slope)


def _gradient(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    result = None
    if grad is not None and ctx.needs_input_grad[0]:
        if not ctx.gradient:
            raise RuntimeError("upsampled_cross_entropy was called with gradient=False")
        result = torch.ops.pipa_fast.upsampled_cross_entropy_backward(
            grad, *ctx.saved_tensors, ctx.backend
        )
    return result, *[None] * 6


implement("upsampled_cross_entropy", BACKENDS)
torch.library.register_fake("pipa_fast::upsampled_cross_entropy", _fake_forward, lib=LIBRARY)
torch.library.register_fake(
    "pipa_fast::upsampled_cross_entropy_backward", _fake_backward, lib=LIBRARY
)
torch.library.register_autograd(
    "pipa_fast::upsampled_cross_entropy", _gradient, setup_context=_setup_context, lib=LIBRARY
)
refuse_second_derivative("upsampled_cross_entropy_backward")
