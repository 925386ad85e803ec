# SPDX-License-Identifier: Apache-2.0
"""`ops.upsampled_cross_entropy`: logits of d classes, n/4 pixels a side, to labels of n."""

import torch
from torch import Tensor

from bench.problem import DTYPES, Problem, Settings

SIZES = (512,)
DIMS = (19,)
VARIANTS = ("valid", "all")  # what the average is over


def eager(logits: Tensor, labels: Tensor, *, average: str) -> Tensor:
    """Return the loss in plain torch: the peer, and with float64 the truth."""
    size = labels.shape[1:]
    full = torch.nn.functional.interpolate(logits, size, mode="bilinear", align_corners=False)
    total = torch.nn.functional.cross_entropy(full, labels, ignore_index=255, reduction="sum")
    return total / (labels.numel() if average == "all" else (labels != 255).sum())


def problem(s: Settings) -> Problem:
    """Return random logits, and random labels of which a tenth are ignored."""
    generator = torch.Generator().manual_seed(s.seed)
    side = max(1, s.n // 4)
    logits = torch.randn(1, s.d, side, side, generator=generator)
    labels = torch.randint(s.d, (1, s.n, s.n), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.1] = 255
    return Problem(
        settings=s,
        features=logits.to(s.device, DTYPES[s.dtype]),
        arguments={"labels": labels.to(s.device), "average": s.variant or VARIANTS[0]},
        truth=eager,
        pairs=s.d * s.n * s.n,
        facts={"m": None, "temperature": None, "classes": s.d},
    )
