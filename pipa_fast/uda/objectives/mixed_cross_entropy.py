# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy on class-mixed images, target pixels labelled by the teacher (DACS)."""

from typing import Literal

from torch import Tensor

from pipa_fast.ops import upsampled_cross_entropy
from pipa_fast.uda.config import MixedConfig
from pipa_fast.uda.objectives.base import Objective
from pipa_fast.uda.outputs import StepOutputs, count_share


class MixedCrossEntropy(Objective):
    """Weighted cross-entropy of the mixed group's logits, upsampled to the labels."""

    def __init__(self, config: MixedConfig) -> None:
        super().__init__("mixed", "mixed", config.weight, config.start, 0)
        self.average: Literal["all", "valid"] = config.average

    def forward(self, outputs: StepOutputs) -> Tensor:
        """Return the weighted cross-entropy [nats], over every pixel or over the valid ones."""
        labels = outputs.labels
        loss = upsampled_cross_entropy(
            outputs.student.logits, labels, weights=outputs.weights, average=self.average
        )
        if self.average == "valid":
            loss = loss * count_share(labels != 255, outputs.group)
        return loss
