# SPDX-License-Identifier: Apache-2.0
"""Labels and confidence from a teacher's logits, upsampled on the way."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pipa_fast.checks import require
from pipa_fast.ops._checks import check_float, check_rank, check_share, is_count
from pipa_fast.ops.backends import (
    LIBRARY,
    Backend,
    Problem,
    absent,
    choose,
    cpu_why_not,
    implement,
    reference_why_not,
    triton_backend,
)
from pipa_fast.reference import pseudo_labels as reference


def pseudo_labels(
    logits: Tensor, *, size: tuple[int, int], threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Upsample logits (bilinear, align_corners=False) and return the likeliest class and its odds.

    Args:
        logits: [B, K, h, w] float; taken as they are under autocast. No gradient flows.
        size: (H, W) of the outputs [pixels].
        threshold: confidence [probability in 0 … 1] from which a pixel is confident.

    Returns:
        labels [B, H, W] int64, their probability [B, H, W] and the share [] of all pixels that are
        confident, both as float32 (float64 for float64). But for the reference backend, the
        full-size logits are never stored.

    Raises:
        ValueError: a shape, dtype or number that does not fit.

    Source: DACS (arXiv 2007.08702); the share is DAFormer's weight of a batch's pseudo labels.
    """
    check_float("logits", logits)
    check_rank("logits", logits, "B K h w")
    require(min(logits.shape[1:]) > 0, "logits", tuple(logits.shape), "[B, K, h, w], K, h, w > 0")
    sides = tuple(size) if isinstance(size, Sequence) else ()
    pair = len(sides) == 2 and all(is_count(side, 1) for side in sides)
    require(pair, "size", size, "two positive lengths (H, W)")
    check_share("threshold", threshold)
    problem = Problem(logits.device, logits.dtype)
    backend = choose("pseudo_labels", BACKENDS, problem, None)
    return torch.ops.pipa_fast.pseudo_labels(logits.detach(), *size, float(threshold), backend)


LIBRARY.define(
    "pseudo_labels(Tensor logits, SymInt height, SymInt width, float threshold, str backend)"
    " -> (Tensor labels, Tensor confidence, Tensor confident_fraction)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _cpu_forward(
    logits: Tensor, height: int, width: int, threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ops.pipa_fast_cpu.pseudo_labels(logits.contiguous(), height, width, threshold, "")


BACKENDS = (
    triton_backend("pseudo_labels")._replace(backward=absent),
    Backend("cpu", cpu_why_not, _cpu_forward, absent),
    Backend("reference", reference_why_not, reference.forward, absent),
)


def _fake_forward(logits: Tensor, height: int, width: int, *_: Any) -> tuple[Tensor, ...]:
    shape = (logits.shape[0], height, width)
    dtype = torch.promote_types(logits.dtype, torch.float32)
    confidence = logits.new_empty(shape, dtype=dtype)
    return logits.new_empty(shape, dtype=torch.int64), confidence, confidence.new_empty(())


implement("pseudo_labels", BACKENDS)
torch.library.register_fake("pipa_fast::pseudo_labels", _fake_forward, lib=LIBRARY)
