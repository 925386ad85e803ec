# SPDX-License-Identifier: Apache-2.0
"""One file per loss term. A term reads `StepOutputs` of its group and returns one scalar."""

from pipa_fast.models import ModelConfig
from pipa_fast.uda.config import AdaptationConfig
from pipa_fast.uda.objectives.base import Objective
from pipa_fast.uda.objectives.mixed_cross_entropy import MixedCrossEntropy
from pipa_fast.uda.objectives.patch_consistency import PatchConsistency
from pipa_fast.uda.objectives.pixel_contrast import PixelContrast
from pipa_fast.uda.objectives.source_cross_entropy import SourceCrossEntropy


def build_objectives(config: AdaptationConfig, model: ModelConfig) -> list[Objective]:
    """Return the objectives of a recipe; adding one is a file here, a config and a line here."""
    objectives: list[Objective] = []
    if config.source.weight > 0:
        objectives.append(SourceCrossEntropy(config.source))
    if config.mixed.weight > 0:
        objectives.append(MixedCrossEntropy(config.mixed))
    if config.pixel.weight > 0:
        images = config.pixel.images
        groups = ("source", "mixed") if images == "both" else (images,)
        objectives += [PixelContrast(config.pixel, group) for group in groups]
    if config.patch.weight > 0:
        objectives.append(PatchConsistency(config.patch, model.patch_dim))
    return objectives


__all__ = ["Objective", "build_objectives"]
