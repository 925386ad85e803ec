# SPDX-License-Identifier: Apache-2.0
"""Intersection over union from a confusion matrix that ranks can add up."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from pipa_fast.checks import require
from pipa_fast.data.labels import IGNORE_INDEX


class ConfusionMatrix:
    """Counts of (true class, predicted class) over pixels: exact integers, kept on one device."""

    def __init__(
        self,
        num_classes: int,
        *,
        ignore_index: int = IGNORE_INDEX,
        device: torch.device | str = "cpu",
    ) -> None:
        require(num_classes > 0, "num_classes", num_classes, "a positive count")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        # [K, K] int64, rows are the truth and columns the prediction.
        self.matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)

    def update(self, prediction: Tensor, truth: Tensor) -> None:
        """Count the pixels of `prediction` against `truth`, integer tensors of the same shape.

        Pixels whose truth is `ignore_index` do not count, whatever was predicted there.

        Raises:
            ValueError: shapes differ, or a counted label lies outside [0, num_classes).
        """
        require(
            prediction.shape == truth.shape,
            "prediction",
            tuple(prediction.shape),
            f"of truth's shape {tuple(truth.shape)}",
        )
        counted = truth != self.ignore_index
        kept_truth, kept_prediction = truth[counted].long(), prediction[counted].long()
        if kept_truth.numel() == 0:
            return
        for name, labels in (("truth", kept_truth), ("prediction", kept_prediction)):
            low, high = (int(x) for x in torch.aminmax(labels))
            require(
                low >= 0 and high < self.num_classes,
                name,
                f"labels from {low} to {high}",
                f"class ids in [0, {self.num_classes}) or {self.ignore_index} in the truth",
            )
        pairs = kept_truth * self.num_classes + kept_prediction
        counts = torch.bincount(pairs, minlength=self.num_classes**2)
        self.matrix += counts.view_as(self.matrix)

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> None:
        """Replace the counts by their sum over the ranks of `group`, on every one of them."""
        dist.all_reduce(self.matrix, group=group)

    def iou(self) -> Tensor:
        """Return IoU per class [K] float64 in [0, 1]; NaN where neither truth nor prediction is."""
        matrix = self.matrix.double()
        hit = matrix.diagonal()
        return hit / (matrix.sum(0) + matrix.sum(1) - hit)

    def miou(self, classes: Sequence[int] | None = None) -> float:
        """Return the mean IoU in [0, 1] over `classes` (all by default) that occur; NaN if none do.

        Pixels of other classes still count as wrong where they were predicted as one of `classes`.
        """
        iou = self.iou()
        if classes is not None:
            iou = iou[list(classes)]
        return float(iou.nanmean())
