# SPDX-License-Identifier: Apache-2.0
"""Pixel-wise contrast across the images of a batch (PiPa, section 3.2)."""

from typing import ClassVar, Literal

from torch import Tensor

from pipa_fast.losses import PixelContrastLoss
from pipa_fast.uda.config import PixelConfig
from pipa_fast.uda.objectives.base import Objective
from pipa_fast.uda.outputs import StepOutputs


class PixelContrast(Objective):
    """Contrast of one group's embeddings under its labels.

    In mixed images, target pixels below the confidence threshold are no anchors: their labels
    become 255. A network with a detail window embeds that, and its labels are cut to it.
    """

    embed: ClassVar[tuple[str, ...]] = ("pixel",)
    classifies: ClassVar[bool] = False

    def __init__(self, config: PixelConfig, group: Literal["source", "mixed"]) -> None:
        name = "pixel" if config.images != "both" else f"pixel_{group}"
        super().__init__(name, group, config.weight, config.start, config.ramp)
        self.confidence = config.confidence
        self.weigh = config.weigh_by_confidence
        self.loss = PixelContrastLoss(
            temperature=config.temperature,
            base_temperature=config.base_temperature,
            denominator=config.denominator,
            num_anchors=config.num_anchors,
            normalize=False,  # the projection head's rows are unit vectors
        )

    def cautions(self, *, iterations: int, images: int, classes: int) -> list[str]:
        """Return the base's, and whether a step can have more classes than anchors to draw."""
        told = super().cautions(iterations=iterations, images=images, classes=classes)
        most, anchors = images * classes, self.loss.num_anchors
        if isinstance(anchors, int) and anchors < most:
            told.append(
                f"draws no anchors in steps whose {images} images show more than {anchors} classes "
                f"in sum: adaptation.pixel.num_anchors {most} is always enough"
            )
        return told

    def forward(self, outputs: StepOutputs) -> Tensor:
        """Return the contrast [nats] over sampled or all pixels of the group."""
        embeddings, labels = outputs.student.pixel, outputs.labels
        assert embeddings is not None, "the step asks for the embeddings that an objective names"
        weights = None
        if outputs.confidence is not None:
            weights = outputs.confidence if self.weigh else None
            labels = labels.masked_fill(outputs.confidence < self.confidence, 255)
        logits, window = outputs.student.logits, outputs.student.window
        if window is not None:
            assert outputs.student.detail is not None
            logits, labels = outputs.student.detail, window.of(labels)
            weights = None if weights is None else window.of(weights)
        predictions = logits.detach().argmax(1)
        return self.loss(
            embeddings, labels, predictions, weights=weights, seed=outputs.seed, group=outputs.group
        )
