# SPDX-License-Identifier: Apache-2.0
"""One file per loss term. A term reads `StepOutputs` of its group and returns one scalar."""

from pipa_fast.models import ModelConfig, SegmentationNetwork
from pipa_fast.uda.config import AdaptationConfig, MaskedConfig, MixedConfig
from pipa_fast.uda.objectives.base import Group, Objective
from pipa_fast.uda.objectives.cross_entropy import CrossEntropy
from pipa_fast.uda.objectives.feature_distance import FeatureDistance
from pipa_fast.uda.objectives.patch_consistency import PatchConsistency
from pipa_fast.uda.objectives.pixel_contrast import PixelContrast


def build_objectives(
    config: AdaptationConfig, model: ModelConfig, network: SegmentationNetwork
) -> list[Objective]:
    """Return the objectives of a recipe; adding one is a file here, a config and a line here.

    `network` is the student before its first step, from which the feature distance starts.
    """
    objectives: list[Objective] = []
    share = model.hrda.detail_loss if model.hrda.enabled else 0.0
    source, mixed, masked = config.source, config.mixed, config.masked
    if source.weight > 0:
        objectives.append(
            CrossEntropy("source", source.weight, average=source.average, detail_share=share)
        )
    if config.features.weight > 0:
        objectives.append(FeatureDistance(config.features, network))
    terms: list[tuple[Group, MixedConfig | MaskedConfig]] = [("mixed", mixed), ("masked", masked)]
    for name, term in terms:
        if term.weight > 0:
            objectives.append(
                CrossEntropy(
                    name,
                    term.weight,
                    start=term.start,
                    average=term.average,
                    detail_share=share,
                )
            )
    if config.pixel.weight > 0:
        images = config.pixel.images
        groups = ("source", "mixed") if images == "both" else (images,)
        objectives += [PixelContrast(config.pixel, group) for group in groups]
    if config.patch.weight > 0:
        objectives.append(PatchConsistency(config.patch, model.patch_dim))
    return objectives


__all__ = ["Objective", "build_objectives"]
