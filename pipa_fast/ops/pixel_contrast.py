# SPDX-License-Identifier: Apache-2.0
"""Pixel contrast: embeddings of one class attract each other and repel those of other classes."""

import math
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from pipa_fast.checks import require
from pipa_fast.ops import _pixel_contrast_cpu as cpu
from pipa_fast.ops._checks import (
    check_label,
    check_rows,
    check_temperature,
    group_name,
    integers,
    pixel_weights,
)
from pipa_fast.ops._pixel_contrast_ranks import Pairs, factor_of_z, over_ranks
from pipa_fast.ops.backends import (
    LIBRARY,
    Backend,
    Problem,
    autocast_features,
    choose,
    cpu_why_not,
    cuda_backend,
    implement,
    later,
    reference_why_not,
    refuse_forward_mode,
    refuse_second_derivative,
    triton_backend,
)
from pipa_fast.reference import pixel_contrast as reference


def pixel_contrast(
    features: Tensor,
    labels: Tensor,
    *,
    weights: Tensor | None = None,
    temperature: float = 0.1,
    denominator: Literal["negatives", "all"] = "negatives",
    ignore_index: int = 255,
    group: dist.ProcessGroup | str | None = None,
    backend: str | None = None,
) -> Tensor:
    """Contrast every labelled row with every other.

    Args:
        features: [N, D] float, 1 <= D <= 512, rows of unit norm (the caller's care); need not be
            contiguous. Under autocast, taken in its dtype.
        labels: [N] integers; rows labelled `ignore_index` take no part.
        weights: [N] of at least 0, a constant; an anchor counts weight/Σ weights. None: all alike.
        temperature: above 0.
        denominator: "negatives" (each positive against all negatives, the released code's form) or
            "all" (the paper's equation: other positives sit in the denominator too).
        group: a process group or its name: the loss over the rows of all ranks, which must all
            call, forward and backward. The value is the same on every rank; the gradient is the
            number of ranks times this rank's part of the whole, so that DDP's mean is exact.
        backend: one of `ops.backends("pixel_contrast", device)`, or None for the best.

    Returns:
        The loss [] in nats, a mean over anchors, as float32 (float64 for float64). It is 0 with
        zero gradient where there is nothing to sum.

    Raises:
        ValueError: a shape, dtype, device or number that does not fit; a named backend that cannot
            run here.

    Source: PiPa (arXiv 2211.07609), section 3.2.
    """
    check_rows("features", features)
    labels = integers("labels", labels, features, (features.shape[0],))
    weights = pixel_weights(weights, features, (features.shape[0],))
    temperature = check_temperature(temperature)
    require(denominator in ("negatives", "all"), "denominator", denominator, '"negatives" or "all"')
    check_label("ignore_index", ignore_index)
    features, name = autocast_features(features), group_name(group)
    n, d = features.shape
    refuse_forward_mode("pixel_contrast", features, weights)
    problem = Problem(features.device, features.dtype, d, temperature, n)
    backend = choose("pixel_contrast", BACKENDS, problem, backend)
    loss, _, _ = torch.ops.pipa_fast.pixel_contrast(
        features, labels, weights, temperature, denominator, ignore_index, name, backend
    )
    return loss


# What a backend saves for its backward pass, z and u [N], is its own affair: the kernels keep Z_i
# and u_i, the reference log Z_i and u_i Z_i.
_SETTINGS = "float temperature, str denominator, int ignore_index, str group, str backend"
LIBRARY.define(
    f"pixel_contrast(Tensor features, Tensor labels, Tensor? weights, {_SETTINGS})"
    " -> (Tensor loss, Tensor z, Tensor u)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.define(
    "pixel_contrast_backward(Tensor grad, Tensor features, Tensor labels, Tensor? weights,"
    f" Tensor z, Tensor u, {_SETTINGS}) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _pairs_of(module: str) -> Pairs:
    """Return the sums over pairs of a module that is imported when one is called."""
    denominators, positives, pulls = (
        later(module, name) for name in ("denominators", "positives", "pulls")
    )
    return Pairs(denominators, torch.add, positives, factor_of_z, pulls, empty=0)


_TRITON_PAIRS = _pairs_of("pipa_fast.kernels._pixel_contrast_ranks")
_CUDA_PAIRS = _pairs_of("pipa_fast.ops._pixel_contrast_cuda")
_REFERENCE_PAIRS = Pairs(
    reference.denominators,
    torch.logaddexp,
    reference.positives,
    lambda w, slopes, _: w * slopes,
    reference.pulls,
    empty=-math.inf,
)
BACKENDS = (
    over_ranks(triton_backend("pixel_contrast"), _TRITON_PAIRS),
    over_ranks(cuda_backend("pixel_contrast"), _CUDA_PAIRS),
    over_ranks(Backend("cpu", cpu_why_not, cpu.forward, cpu.backward), cpu.pairs()),
    over_ranks(
        Backend("reference", reference_why_not, reference.forward, reference.backward),
        _REFERENCE_PAIRS,
    ),
)


def _fake_forward(features: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.promote_types(features.dtype, torch.float32)
    saved = features.new_empty(features.shape[:1], dtype=dtype)
    return features.new_empty((), dtype=dtype), saved, torch.empty_like(saved)


def _fake_backward(grad: Tensor, features: Tensor, *_: Any) -> Tensor:
    return features.new_empty(features.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    features, labels, weights, *ctx.settings = inputs
    _, z, u = output
    ctx.mark_non_differentiable(z, u)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(features, labels, weights, z, u)


def _gradient(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    gradient = None
    if grad is not None and ctx.needs_input_grad[0]:
        gradient = torch.ops.pipa_fast.pixel_contrast_backward(
            grad, *ctx.saved_tensors, *ctx.settings
        )
    return gradient, *[None] * 7


implement("pixel_contrast", BACKENDS)
torch.library.register_fake("pipa_fast::pixel_contrast", _fake_forward, lib=LIBRARY)
torch.library.register_fake("pipa_fast::pixel_contrast_backward", _fake_backward, lib=LIBRARY)
torch.library.register_autograd(
    "pipa_fast::pixel_contrast", _gradient, setup_context=_setup_context, lib=LIBRARY
)
refuse_second_derivative("pixel_contrast_backward")
