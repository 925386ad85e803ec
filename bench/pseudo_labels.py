# SPDX-License-Identifier: Apache-2.0
"""`ops.pseudo_labels`: a teacher's logits of d classes, n/4 pixels a side, to labels of n."""

import torch
from torch import Tensor

from bench.problem import DTYPES, Problem, Settings, relative

SIZES = (512,)
DIMS = (19,)
VARIANTS = ("",)


def eager(
    logits: Tensor, *, size: tuple[int, int], threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return labels, confidence and confident share in plain torch: the peer and the truth."""
    full = torch.nn.functional.interpolate(logits, size, mode="bilinear", align_corners=False)
    confidence, labels = full.softmax(1).max(1)
    return labels, confidence, (confidence >= threshold).float().mean()


def error(found: tuple[Tensor, ...], truth: tuple[Tensor, ...]) -> float:
    """Return the confidence's relative error plus the share of pixels labelled differently."""
    wrong = (found[0] != truth[0]).double().mean()
    return relative(found[1], truth[1]) + float(wrong)


def problem(s: Settings) -> Problem:
    """Return random logits."""
    generator = torch.Generator().manual_seed(s.seed)
    side = max(1, s.n // 4)
    logits = 3 * torch.randn(1, s.d, side, side, generator=generator)
    return Problem(
        settings=s,
        features=logits.to(s.device, DTYPES[s.dtype]),
        arguments={"size": (s.n, s.n), "threshold": 0.9},
        truth=eager,
        pairs=s.d * s.n * s.n,
        facts={"m": None, "temperature": None, "classes": s.d},
        differentiable=False,
        value_error=error,
    )
