# SPDX-License-Identifier: Apache-2.0
"""Patch consistency: a place gets one embedding in two crops, unlike those of other classes."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipa_fast.ops._checks import (
    check_constant,
    check_like,
    check_rows,
    check_shape,
    check_temperature,
    group_name,
    integers,
    pixel_weights,
)
from pipa_fast.ops._ranks import counts_of_ranks, gather_padded, place, sum_over_ranks
from pipa_fast.ops.backends import (
    LIBRARY,
    Backend,
    Problem,
    autocast_features,
    choose,
    contiguous,
    cpu_why_not,
    cuda_backend,
    implement,
    reference_why_not,
    refuse_forward_mode,
    refuse_second_derivative,
    triton_backend,
)
from pipa_fast.reference import patch_consistency as reference


def patch_consistency(
    anchors: Tensor,
    positives: Tensor,
    bank: Tensor,
    anchor_labels: Tensor,
    bank_labels: Tensor,
    *,
    weights: Tensor | None = None,
    temperature: float = 0.1,
    group: dist.ProcessGroup | str | None = None,
    backend: str | None = None,
) -> Tensor:
    """Draw anchors to their positives and away from the bank's keys of other classes.

    Args:
        anchors: [N, D] float, 1 <= D <= 512, rows of unit norm (the caller's care); need not be
            contiguous. Under autocast, taken in its dtype, as are positives and bank.
        positives: [N, D], the same places in the other crop; a constant of the anchors' dtype.
        bank: [M, D] keys; a constant of the anchors' dtype.
        anchor_labels: [N] integers; a negative label's anchor has no weight.
        bank_labels: [M] integers; a negative label's key takes no part.
        weights: [N] of at least 0, a constant; an anchor counts weight/Σ weights. None: all alike.
        temperature: above 0.
        group: a process group or its name: the loss over the anchors of all ranks, against the
            banks of all ranks, which must all call. The value is the same on every rank; the
            gradient is the number of ranks times this rank's part of the whole, so that DDP's mean
            is exact.
        backend: one of `ops.backends("patch_consistency", device)`, or None for the best.

    Returns:
        The loss [] in nats, a weighted mean over anchors, as float32 (float64 for float64). It is
        0 with zero gradient where there is nothing to sum. An anchor without negatives adds 0.

    Raises:
        ValueError: a shape, dtype, device or number that does not fit; positives, bank or weights
            that require a gradient (for both directions, call twice); a named backend that cannot
            run here.

    Source: PiPa (arXiv 2211.07609), section 3.3.
    """
    check_rows("anchors", anchors)
    check_rows("positives", positives)
    check_rows("bank", bank)
    anchors, positives, bank = (autocast_features(t) for t in (anchors, positives, bank))
    for name, constant in (("positives", positives), ("bank", bank)):
        check_like(name, constant, "anchors", anchors)
        check_constant(name, constant)
    count, dim = anchors.shape
    check_shape("positives", positives, (count, dim))
    check_shape("bank", bank, (bank.shape[0], dim))
    anchor_labels = integers("anchor_labels", anchor_labels, anchors, (count,))
    bank_labels = integers("bank_labels", bank_labels, anchors, (bank.shape[0],))
    weights = pixel_weights(weights, anchors, (count,))
    temperature, ranks = check_temperature(temperature), group_name(group)
    refuse_forward_mode("patch_consistency", anchors, positives, bank, weights)
    problem = Problem(anchors.device, anchors.dtype, dim, temperature, count)
    backend = choose("patch_consistency", BACKENDS, problem, backend)
    loss, _ = torch.ops.pipa_fast.patch_consistency(
        anchors, positives, bank, anchor_labels, bank_labels, weights, temperature, ranks, backend
    )
    return loss


LIBRARY.define(
    "patch_consistency(Tensor anchors, Tensor positives, Tensor bank, Tensor anchor_labels,"
    " Tensor bank_labels, Tensor? weights, float temperature, str group, str backend)"
    " -> (Tensor loss, Tensor slope)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.define(
    "patch_consistency_backward(Tensor grad, Tensor anchors, Tensor slope, str backend) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _cpu_forward(
    anchors: Tensor,
    positives: Tensor,
    bank: Tensor,
    anchor_labels: Tensor,
    bank_labels: Tensor,
    weights: Tensor | None,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    tensors = contiguous(anchors, positives, bank, anchor_labels, bank_labels, weights)
    return torch.ops.pipa_fast_cpu.patch_consistency_forward(*tensors, temperature, "")


def _over_ranks(backend: Backend) -> Backend:
    """Return a backend that takes groups too: the bank is that of all ranks, and so is Σw."""

    def forward(
        anchors: Tensor,
        positives: Tensor,
        bank: Tensor,
        anchor_labels: Tensor,
        bank_labels: Tensor,
        weights: Tensor | None,
        temperature: float,
        group: str,
    ) -> tuple[Tensor, ...]:
        if not group:
            return backend.forward(
                anchors, positives, bank, anchor_labels, bank_labels, weights, temperature
            )
        counts = counts_of_ranks(group, bank)
        keys = gather_padded(group, bank, counts).flatten(0, 1)
        key_labels = gather_padded(group, bank_labels, counts, -1).flatten()
        loss, slope = backend.forward(
            anchors, positives, keys, anchor_labels, key_labels, weights, temperature
        )
        ones = torch.ones_like(anchor_labels, dtype=torch.float64)
        weight = torch.where(anchor_labels < 0, 0, ones if weights is None else weights).sum()
        total = sum_over_ranks(weight.double(), group)
        share = weight / torch.where(total > 0, total, 1)
        mean = sum_over_ranks(loss * share, group)
        return mean.to(loss.dtype), slope * (share * place(group)[1]).to(slope.dtype)

    return backend._replace(forward=forward, backward=reference.backward)


BACKENDS = tuple(
    _over_ranks(backend)
    for backend in (
        triton_backend("patch_consistency"),
        cuda_backend("patch_consistency"),
        Backend("cpu", cpu_why_not, _cpu_forward, reference.backward),
        Backend("reference", reference_why_not, reference.forward, reference.backward),
    )
)


def _fake_forward(anchors: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(anchors.dtype, torch.float32)
    slope = anchors.new_empty(anchors.shape, dtype=dtype)
    return anchors.new_empty((), dtype=dtype), slope


def _fake_backward(grad: Tensor, anchors: Tensor, slope: Tensor, backend: str) -> Tensor:
    return torch.empty_like(slope, dtype=anchors.dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    anchors, ctx.backend = inputs[0], inputs[-1]
    slope = output[1]
    ctx.mark_non_differentiable(slope)
    ctx.set_materialize_grads(False)
    # The bank is not needed again: it may be overwritten before the backward pass.
    ctx.save_for_backward(anchors, slope)


def _gradient(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    gradient = None
    if grad is not None and ctx.needs_input_grad[0]:
        gradient = torch.ops.pipa_fast.patch_consistency_backward(
            grad, *ctx.saved_tensors, ctx.backend
        )
    return gradient, *[None] * 8


implement("patch_consistency", BACKENDS)
torch.library.register_fake("pipa_fast::patch_consistency", _fake_forward, lib=LIBRARY)
torch.library.register_fake("pipa_fast::patch_consistency_backward", _fake_backward, lib=LIBRARY)
torch.library.register_autograd(
    "pipa_fast::patch_consistency", _gradient, setup_context=_setup_context, lib=LIBRARY
)
refuse_second_derivative("patch_consistency_backward")
