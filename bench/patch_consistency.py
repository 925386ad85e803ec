# SPDX-License-Identifier: Apache-2.0
"""`ops.patch_consistency`: n anchors of width d (both crops') against 9600 detached keys."""

from functools import partial

import torch

from bench.problem import DTYPES, Problem, Settings, unit_rows
from pipa_fast import ops

SIZES = (16200,)  # 2 x 8100
DIMS = (128,)
VARIANTS = ("",)
KEYS = 9600  # PiPa's bank: 1600 cells of 2 views over 3 steps
CLASSES = 19


def problem(s: Settings) -> Problem:
    """Return random anchors with positives near them, and a bank, in 19 classes."""
    generator = torch.Generator().manual_seed(s.seed)
    anchors, bank = unit_rows(s.n, s.d, generator), unit_rows(KEYS, s.d, generator)
    near = anchors + 0.3 * unit_rows(s.n, s.d, generator)
    positives = torch.nn.functional.normalize(near, dim=1)
    labels = torch.randint(CLASSES, (s.n + KEYS,), generator=generator).to(s.device)
    anchors, positives, bank = (
        rows.to(s.device, DTYPES[s.dtype]) for rows in (anchors, positives, bank)
    )
    return Problem(
        settings=s,
        features=anchors,
        arguments={
            "positives": positives,
            "bank": bank,
            "anchor_labels": labels[: s.n],
            "bank_labels": labels[s.n :],
            "temperature": s.temperature,
        },
        truth=partial(ops.patch_consistency, backend="reference"),
        pairs=s.n * KEYS,
        facts={"m": KEYS, "temperature": s.temperature, "classes": CLASSES},
        product=(anchors, bank),
        # The keys are constants: one product for the sums, one for the gradient. Ours does both
        # while it goes forward, so that its backward is a multiplication.
        passes={"forward": 1, "backward": 1, "both": 2},
    )


def traffic(n: int, m: int, d: int, size: int) -> int:
    """Return the least that a forward and backward move [bytes], in numbers of `size` bytes.

    Anchors, positives, keys and labels in, the anchors' gradient out.
    """
    return (3 * n + m) * d * size + 8 * (n + m)
