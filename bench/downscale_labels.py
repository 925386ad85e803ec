# SPDX-License-Identifier: Apache-2.0
"""`ops.downscale_labels`: two label maps, n pixels a side, with d classes, to a 32nd of a side."""

import torch

from bench.problem import Problem, Settings, harmonic_labels
from pipa_fast.reference.downscale_labels import downscale_labels

SIZES = (512, 1024)
DIMS = (19,)
VARIANTS = ("",)
IMAGES, STRIDE = 2, 32
PATCH = 16  # labels come in squares of so many pixels a side


def problem(s: Settings) -> Problem:
    """Return squares of labels, some classes rare, one square in ten unlabelled."""
    generator = torch.Generator().manual_seed(s.seed)
    side = max(1, s.n // PATCH)
    coarse = harmonic_labels(IMAGES * side * side, s.d, generator).view(IMAGES, side, side)
    coarse[torch.rand(coarse.shape, generator=generator) < 0.1] = 255
    place = torch.arange(s.n).mul(side).div(s.n, rounding_mode="floor")
    return Problem(
        settings=s,
        features=coarse[:, place][:, :, place].to(s.device),
        arguments={"stride": min(STRIDE, s.n), "num_classes": s.d, "min_ratio": 0.75},
        truth=downscale_labels,
        pairs=IMAGES * s.n * s.n,
        facts={"m": None, "temperature": None, "classes": s.d},
        differentiable=False,
        count=True,
    )
