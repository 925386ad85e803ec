# SPDX-License-Identifier: Apache-2.0
"""`ops.sample_anchors`: 1,024 anchors of two label maps, n pixels a side, with d classes."""

from collections import Counter
from functools import partial

import torch
from torch import Tensor

from bench.problem import Problem, Settings, square_labels
from pipa_fast.reference.sample_anchors import group_sizes

SIZES = (128,)
DIMS = (19,)
VARIANTS = ("",)
IMAGES = 2
PATCH = 4  # labels come in squares of so many pixels a side
WRONG = 0.2  # share of the pixels predicted wrongly
QUOTAS = {"num_anchors": 1024, "max_per_class": 100, "hard_fraction": 0.5, "ignore_index": 255}


def error(labels: Tensor, predictions: Tensor, found: tuple[Tensor, Tensor], truth: dict) -> float:
    """Return by how many anchors the groups' sizes differ from the truth, beside all anchors.

    A group is the hard or the easy pixels of one class in one image. Not a number where an anchor
    is no pixel of its class, or one pixel is drawn twice.
    """
    index, anchor_labels = found
    real = anchor_labels != 255
    index, anchor_labels = index[real], anchor_labels[real]
    if index.unique().numel() < index.numel():
        return float("nan")
    if not torch.equal(labels.flatten()[index], anchor_labels):
        return float("nan")
    hard = predictions.flatten()[index] != anchor_labels
    image = index // labels[0].numel()
    drawn = Counter(zip(image.tolist(), anchor_labels.tolist(), hard.tolist(), strict=True))
    differ = sum(abs(drawn[group] - truth.get(group, 0)) for group in drawn.keys() | truth.keys())
    return differ / max(1, sum(truth.values()))


def sizes(labels: Tensor, predictions: Tensor, *, seed: int) -> dict[tuple[int, int, bool], int]:
    """Return how many anchors each group gives; which ones is left to chance."""
    return group_sizes(labels.cpu(), predictions.cpu(), **QUOTAS)


def problem(s: Settings) -> Problem:
    """Return squares of labels, and predictions of which some are wrong."""
    generator = torch.Generator().manual_seed(s.seed)
    labels = square_labels(IMAGES, s.n, PATCH, s.d, generator)
    guesses = torch.randint(0, s.d, labels.shape, generator=generator)
    right = torch.rand(labels.shape, generator=generator) >= WRONG
    predictions = torch.where(right, labels, guesses)
    return Problem(
        settings=s,
        features=labels.to(s.device),
        arguments={"predictions": predictions.to(s.device), "seed": s.seed},
        truth=sizes,
        pairs=IMAGES * s.n * s.n,
        facts={"m": None, "temperature": None, "classes": s.d},
        differentiable=False,
        value_error=partial(error, labels.to(s.device), predictions.to(s.device)),
        count=True,
    )
