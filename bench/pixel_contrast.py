# SPDX-License-Identifier: Apache-2.0
"""`ops.pixel_contrast` among n unit rows of width d, in 16 classes that are 1/(c + 1) frequent."""

from functools import partial

import torch

from bench.problem import DTYPES, Problem, Settings, harmonic_labels, unit_rows
from pipa_fast import ops

SIZES = (8192,)
DIMS = (128, 256)
VARIANTS = ("negatives", "all")  # of the denominator
CLASSES = 16


def problem(s: Settings) -> Problem:
    """Return random rows: what they hold does not change the time, how the classes divide does."""
    generator = torch.Generator().manual_seed(s.seed)
    features = unit_rows(s.n, s.d, generator).to(s.device, DTYPES[s.dtype])
    labels = harmonic_labels(s.n, CLASSES, generator).to(s.device)
    return Problem(
        settings=s,
        features=features,
        arguments={
            "labels": labels,
            "temperature": s.temperature,
            "denominator": s.variant or VARIANTS[0],
        },
        truth=partial(ops.pixel_contrast, backend="reference"),
        pairs=s.n * s.n,
        facts={"m": s.n, "temperature": s.temperature, "classes": CLASSES},
        product=(features, features),
        # one product for the sums; S once more and G X for the gradient of a symmetric matrix
        passes={"forward": 1, "backward": 2, "both": 3},
    )


def traffic(n: int, m: int, d: int, size: int) -> int:
    """Return the least that a forward and backward move [bytes]: rows and labels in, gradient out.

    `size` is that of a number [bytes].
    """
    return 2 * n * d * size + 8 * n
