# SPDX-License-Identifier: Apache-2.0
"""A training step built as the lineage builds it, out of the same model, data and loss terms.

Its ways, each from the release that it is found in: losses on logits at full size, softmax and
maximum at full size, a loop over images and classes that draws anchors, contrast by matrices,
chunks of keys that are recomputed, one-hot planes of labels, a teacher that sees windows one by one
and is averaged parameter by parameter, and every loss read back in every step.
"""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.peers import (
    downscale_labels,
    patch_consistency,
    pixel_contrast,
    sample_anchors,
    teacher_update,
)
from bench.pseudo_labels import eager as pseudo_labels
from pipa_fast import losses, ops
from pipa_fast.models import SegmentationNetwork
from pipa_fast.models.hrda import HRDANetwork, mean_of_windows, sliding_windows
from pipa_fast.uda import step
from pipa_fast.uda.objectives import cross_entropy, feature_distance
from pipa_fast.uda.teacher import Teacher


def enlarged_cross_entropy(
    logits: Tensor, labels: Tensor, *, weights: Tensor | None = None, average: str = "all"
) -> Tensor:
    """Enlarge the logits, take a loss map, weigh it, and average over all pixels or valid ones."""
    full = F.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=False)
    loss = F.cross_entropy(full, labels, ignore_index=255, reduction="none")
    loss = loss if weights is None else loss * weights
    return loss.mean() if average == "all" else loss.sum() / (labels != 255).sum()


def contrast(features: Tensor, labels: Tensor, *, temperature: float, **how: Any) -> Tensor:
    """Drop what has no label, then the dense formula."""
    kept = labels != how.get("ignore_index", 255)
    count = labels[kept].bincount()
    paired = count[labels[kept]] > 1
    rows, own = features[kept][paired], labels[kept][paired]
    if len(own) == 0:
        return 0 * features.sum()
    how = {"denominator": how.get("denominator", "negatives"), "temperature": temperature}
    return pixel_contrast.eager(rows, own, **how)


def consistency(
    anchors: Tensor,
    positives: Tensor,
    bank: Tensor,
    anchor_labels: Tensor,
    bank_labels: Tensor,
    *,
    weights: Tensor,
    temperature: float,
    **how: Any,
) -> Tensor:
    """Drop anchors without weight and keys without label, then chunks that are recomputed."""
    kept, keys = weights > 0, bank_labels >= 0
    if not kept.any():
        return 0 * anchors.sum()
    return patch_consistency.chunked(
        anchors[kept],
        positives[kept],
        bank[keys],
        anchor_labels[kept],
        bank_labels[keys],
        temperature=temperature,
    )


def one_by_one(network: HRDANetwork, images: Tensor) -> Tensor:
    """Return the mean logits of overlapping windows, each of which the network sees alone."""
    windows = sliding_windows((images.shape[2], images.shape[3]), network.detail_size)
    pieces = [
        network.head.classify(network.head(network.encode(window.of(images)))) for window in windows
    ]
    return mean_of_windows(torch.stack(pieces), windows, images, network.cell)


def average(teacher: Teacher, student: SegmentationNetwork, iteration: int) -> None:
    """Move the teacher's parameters one after another."""
    teacher_update.loop(torch.empty(0), teacher=teacher, student=student, iteration=iteration)


def draw(labels: Tensor, predictions: Tensor, *, seed: Any, **how: Any) -> tuple[Tensor, Tensor]:
    """Draw anchors in a loop over images and classes."""
    return sample_anchors.loop(labels, predictions, seed=int(seed))


@contextlib.contextmanager
def lineage() -> Iterator[None]:
    """Let training steps be built the lineage's way while the block runs."""
    with contextlib.ExitStack() as stack:
        for owner, name, new in (
            (ops, "pixel_contrast", contrast),
            (ops, "patch_consistency", consistency),
            (ops, "sample_anchors", draw),
            (cross_entropy, "upsampled_cross_entropy", enlarged_cross_entropy),
            (step, "pseudo_labels", pseudo_labels),
            (feature_distance, "downscale_labels", downscale_labels.planes),
            (Teacher, "update", average),
            (HRDANetwork, "_slide", one_by_one),
        ):
            stack.enter_context(mock.patch.object(owner, name, new))
        assert losses.ops is ops, "the losses call the ops that are replaced here"
        yield
