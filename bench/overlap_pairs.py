# SPDX-License-Identifier: Apache-2.0
"""`ops.overlap_pairs`: 1,600 pairs of d images, whose two crops give maps of n cells a side."""

from functools import partial

import torch
from torch import Tensor

from bench.problem import Problem, Settings
from pipa_fast.reference.overlap_pairs import all_pairs

SIZES = (90,)  # the lineage's crops of 720 pixels, at stride 8
DIMS = (1,)
VARIANTS = ("",)
STRIDE = 8
PAIRS = 1600


def error(every: set[tuple[int, int]], found: tuple[Tensor, Tensor], truth: int) -> float:
    """Return by how many pairs there are too few or too many, beside all pairs.

    Not a number where cells of a pair don't match, or a pair is drawn twice.
    """
    real = found[0] >= 0
    pairs = list(zip(*(index[real].tolist() for index in found), strict=True))
    if len(set(pairs)) < len(pairs) or not set(pairs) <= every:
        return float("nan")
    return abs(len(pairs) - truth) / max(1, truth)


def problem(s: Settings) -> Problem:
    """Return crops that lie up to half their side apart, some mirrored."""
    generator = torch.Generator().manual_seed(s.seed)
    reach = s.n // 2
    cells = torch.randint(0, reach + 1, (s.d, 2, 2), generator=generator)
    corner = cells * STRIDE
    boxes = torch.cat((corner, corner + s.n * STRIDE), dim=2)
    flips = torch.rand(s.d, 2, generator=generator) < 0.5
    crop = (s.n * STRIDE, s.n * STRIDE)
    every = {p for own in all_pairs(boxes, flips, crop_size=crop, stride=STRIDE) for p in own}
    return Problem(
        settings=s,
        features=boxes.to(s.device),
        arguments={
            "flips": flips.to(s.device),
            "crop_size": crop,
            "stride": STRIDE,
            "num_pairs": PAIRS,
            "seed": s.seed,
        },
        truth=lambda *_, **__: min(PAIRS, len(every)),
        pairs=s.d * s.n * s.n,
        facts={"m": None, "temperature": None, "classes": None},
        differentiable=False,
        value_error=partial(error, every),
        count=True,
    )
