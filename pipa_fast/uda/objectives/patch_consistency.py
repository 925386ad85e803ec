# SPDX-License-Identifier: Apache-2.0
"""Patch-wise consistency of two overlapping crops of one target image (PiPa, section 3.3)."""

from typing import ClassVar

from torch import Tensor

from pipa_fast.bank import FeatureBank
from pipa_fast.losses import PatchConsistencyLoss
from pipa_fast.uda.config import PatchConfig
from pipa_fast.uda.objectives.base import Objective
from pipa_fast.uda.outputs import StepOutputs


class PatchConsistency(Objective):
    """Each crop's features are anchors once, with the other crop's as positives.

    The group's images are the batch's crops, [2B, 3, h, w], first all first crops, then all second
    ones.
    """

    embed: ClassVar[tuple[str, ...]] = ("patch",)
    classifies: ClassVar[bool] = False

    def __init__(self, config: PatchConfig, dim: int) -> None:
        super().__init__("patch", "patch", config.weight, config.start, config.ramp)
        self.loss = PatchConsistencyLoss(
            temperature=config.temperature,
            confidence_threshold=config.confidence_threshold,
            bank=FeatureBank(config.bank, dim),
            normalize=False,
            num_pairs=config.num_pairs,
            bank_confidence=config.bank_confidence,
        )

    def forward(self, outputs: StepOutputs) -> Tensor:
        """Return the consistency loss [nats], both directions."""
        features, batch = outputs.student.patch, outputs.batch
        assert features is not None and outputs.confidence is not None
        view_a, view_b = features.chunk(2)
        labels_a, labels_b = outputs.labels.chunk(2)
        confidence_a, confidence_b = outputs.confidence.chunk(2)
        return self.loss(
            view_a,
            view_b,
            labels_a,
            labels_b,
            confidence_a,
            confidence_b,
            batch.boxes,
            batch.flips,
            seed=outputs.seed,
            group=outputs.group,
        )
