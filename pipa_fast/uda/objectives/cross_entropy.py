# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy of one group's images: source labels, class-mixed labels, masked images' labels."""

from typing import Literal

from torch import Tensor

from pipa_fast.ops import upsampled_cross_entropy
from pipa_fast.uda.objectives.base import Group, Objective
from pipa_fast.uda.outputs import StepOutputs, count_share


class CrossEntropy(Objective):
    """Cross-entropy of a group's logits, enlarged to the labels, each pixel with its weight.

    Where the network looks at a detail window, `detail_share` of the loss is that of the window's
    own logits (HRDA, equation 9).
    """

    def __init__(
        self,
        name: Group,
        weight: float,
        *,
        start: int = 0,
        average: Literal["all", "valid"] = "all",
        detail_share: float = 0.0,
    ) -> None:
        super().__init__(name, name, weight, start, 0)
        self.average: Literal["all", "valid"] = average
        self.detail_share = detail_share

    def forward(self, outputs: StepOutputs) -> Tensor:
        """Return the weighted cross-entropy [nats], over every pixel or over the valid ones."""
        student, labels, weights = outputs.student, outputs.labels, outputs.weights
        loss = self._mean(student.logits, labels, weights, outputs)
        window = student.window
        if student.detail is None or window is None or self.detail_share == 0:
            return loss
        inside = None if weights is None else window.of(weights)
        detail = self._mean(student.detail, window.of(labels), inside, outputs)
        return (1 - self.detail_share) * loss + self.detail_share * detail

    def _mean(
        self, logits: Tensor, labels: Tensor, weights: Tensor | None, outputs: StepOutputs
    ) -> Tensor:
        loss = upsampled_cross_entropy(logits, labels, weights=weights, average=self.average)
        if self.average == "valid":
            loss = loss * count_share(labels != 255, outputs.group)
        return loss
