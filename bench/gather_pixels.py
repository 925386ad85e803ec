# SPDX-License-Identifier: Apache-2.0
"""`ops.gather_pixels`: n anchors from two maps of 128 x 128 pixels, d wide, as unit rows.

The maps hold unit vectors, as a step's projection heads return them, or raw features.
"""

import torch
import torch.nn.functional as F

from bench.problem import DTYPES, Problem, Settings
from pipa_fast.reference.gather_pixels import gather_pixels

SIZES = (1024,)
DIMS = (256,)
VARIANTS = ("unit", "raw")
IMAGES, SIDE = 2, 128


def problem(s: Settings) -> Problem:
    """Return random maps, pixels drawn without replacement, and the gradient that comes back."""
    generator = torch.Generator().manual_seed(s.seed)
    features, raw = torch.randn(IMAGES, s.d, SIDE, SIDE, generator=generator), s.variant == "raw"
    features = features if raw else F.normalize(features, dim=1)
    index = torch.randperm(IMAGES * SIDE * SIDE, generator=generator)[: s.n].sort().values
    gradient = F.normalize(torch.randn(len(index), s.d, generator=generator), dim=1)
    dtype = DTYPES[s.dtype]
    return Problem(
        settings=s,
        features=features.to(s.device, dtype),
        arguments={"index": index.to(s.device), "normalize": raw},
        truth=gather_pixels,
        pairs=s.n * s.d,
        facts={"m": None, "temperature": None, "classes": None},
        gradient=gradient.to(s.device, dtype),
        count=True,
    )
