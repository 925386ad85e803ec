# SPDX-License-Identifier: Apache-2.0
"""Supervised cross-entropy on the labelled source images."""

from typing import Literal

from torch import Tensor

from pipa_fast.ops import upsampled_cross_entropy
from pipa_fast.uda.config import SourceConfig
from pipa_fast.uda.objectives.base import Objective
from pipa_fast.uda.outputs import StepOutputs, count_share


class SourceCrossEntropy(Objective):
    """Cross-entropy of the source group's logits, upsampled to the labels."""

    def __init__(self, config: SourceConfig) -> None:
        super().__init__("source", "source", config.weight, 0, 0)
        self.average: Literal["all", "valid"] = config.average

    def forward(self, outputs: StepOutputs) -> Tensor:
        """Return the mean cross-entropy [nats]."""
        labels = outputs.labels
        loss = upsampled_cross_entropy(outputs.student.logits, labels, average=self.average)
        if self.average == "valid":
            loss = loss * count_share(labels != 255, outputs.group)
        return loss
