# SPDX-License-Identifier: Apache-2.0
"""`ops.downscale_labels`: two label maps, n pixels a side, with d classes, to a 32nd of a side."""

import torch

from bench.problem import Problem, Settings, square_labels
from pipa_fast.reference.downscale_labels import downscale_labels

SIZES = (512, 1024)
DIMS = (19,)
VARIANTS = ("",)
IMAGES, STRIDE = 2, 32
PATCH = 16  # labels come in squares of so many pixels a side


def problem(s: Settings) -> Problem:
    """Return squares of labels, some classes rare, one square in ten unlabelled."""
    generator = torch.Generator().manual_seed(s.seed)
    return Problem(
        settings=s,
        features=square_labels(IMAGES, s.n, PATCH, s.d, generator).to(s.device),
        arguments={"stride": min(STRIDE, s.n), "num_classes": s.d, "min_ratio": 0.75},
        truth=downscale_labels,
        pairs=IMAGES * s.n * s.n,
        facts={"m": None, "temperature": None, "classes": s.d},
        differentiable=False,
        count=True,
    )
