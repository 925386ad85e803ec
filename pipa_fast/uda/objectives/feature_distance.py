# SPDX-License-Identifier: Apache-2.0
"""Distance of the student's features to those of the frozen network that it started from."""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from pipa_fast.data.labels import IGNORE_INDEX
from pipa_fast.models import SegmentationNetwork
from pipa_fast.ops import downscale_labels
from pipa_fast.uda.config import FeatureConfig
from pipa_fast.uda.objectives.base import Objective
from pipa_fast.uda.outputs import StepOutputs, mean_count


class FeatureDistance(Objective):
    """Keeps the last stage's features of things near the pretrained ones (DAFormer, section 3.3).

    L = mean over cells of things of |f - f_0|_2, with f_0 the frozen network's features of the same
    image. A cell is of a thing where that class fills at least `min_ratio` of its pixels.
    """

    classifies: ClassVar[bool] = False

    def __init__(self, config: FeatureConfig, network: SegmentationNetwork) -> None:
        super().__init__("features", "source", config.weight, 0, 0)
        self.min_ratio = config.min_ratio
        self.known: Tensor
        known = torch.zeros(256, dtype=torch.bool)
        known[list(config.classes)] = True
        self.register_buffer("known", known, persistent=False)
        # In a list, it is no submodule: a checkpoint need not hold what the settings determine, and
        # nothing puts it in training mode.
        self._frozen = [network.export().eval()]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FeatureDistance":
        self._frozen[0]._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def forward(self, outputs: StepOutputs) -> Tensor:
        """Return the mean distance [] of this rank's share of all ranks' cells; 0 without any."""
        features = outputs.student.deep
        assert features is not None, "the source images go through the encoder"
        frozen, images = self._frozen[0], outputs.batch.source_image
        with torch.no_grad():
            original = frozen.encode(frozen.context(images))[-1]
        cells = downscale_labels(
            outputs.labels,
            stride=outputs.labels.shape[1] // features.shape[2],
            num_classes=IGNORE_INDEX,  # whatever the labels' classes
            min_ratio=self.min_ratio,
        )
        inside = self.known[cells]
        difference = features.float() - original
        # The norm's gradient is not defined at 0, where the student still is what it started from.
        squares = difference.square().sum(1)
        distance = torch.where(squares > 0, squares, 1).sqrt() * (squares > 0)
        return (distance * inside).sum() / mean_count(inside, outputs.group)
