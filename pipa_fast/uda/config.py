# SPDX-License-Identifier: Apache-2.0
"""Which objectives a recipe adds up, and with what settings. A weight of 0 switches one off."""

import math
from dataclasses import dataclass, field
from typing import Literal

from pipa_fast.checks import require
from pipa_fast.data.labels import IGNORE_INDEX


def _share(setting: str, value: float) -> None:
    require(0 <= value <= 1, f"adaptation.{setting}", value, "a number in [0, 1]")


def _count(setting: str, value: int, *, least: int = 0) -> None:
    require(value >= least, f"adaptation.{setting}", value, f"a count of at least {least}")


def _positive(setting: str, value: float) -> None:
    finite = 0 < value < math.inf
    require(finite, f"adaptation.{setting}", value, "a positive finite number")


@dataclass(kw_only=True)
class SourceConfig:
    """Supervised cross-entropy on labelled source images."""

    weight: float = 1.0
    average: Literal["all", "valid"] = "all"
    """"all" divides by every pixel, ignored ones included, as the lineage does."""
    augment: bool = False
    """Brightness, contrast and colours of source images change (`data.augmentation.distort`), in
    the lineage where there is no adaptation, and only there."""


@dataclass(kw_only=True)
class MixedConfig:
    """Cross-entropy on class-mixed images with the teacher's labels (DACS)."""

    weight: float = 0.0
    average: Literal["all", "valid"] = "all"
    start: int = 0
    """First iteration [steps] at which the term counts."""
    threshold: float = 0.968
    """A pseudo label is confident at or above it; the confident share weighs the batch."""
    augment: bool = True
    """Colour jitter and blur on the mixed image."""
    jitter: float = 0.2
    """Strength of the jitter: brightness, contrast, saturation and hue change by up to this."""
    ignore_top: int = 0
    ignore_bottom: int = 0
    """Rows [pixels] of pseudo labels without weight (rectification strip, ego hood)."""

    def __post_init__(self) -> None:
        for name in ("start", "ignore_top", "ignore_bottom"):
            _count(f"mixed.{name}", getattr(self, name))
        _share("mixed.threshold", self.threshold)
        _share("mixed.jitter", self.jitter)  # above 1, contrast would change sign


@dataclass(kw_only=True)
class FeatureConfig:
    """Distance to the features of the network that training starts from (DAFormer)."""

    weight: float = 0.0
    """0.005 in the lineage."""
    classes: tuple[int, ...] = (6, 7, 11, 12, 13, 14, 15, 16, 17, 18)
    """Train ids of things: those that ImageNet knows."""
    min_ratio: float = 0.75
    """Share of a cell's pixels that must be of one class."""

    def __post_init__(self) -> None:
        fine = len(self.classes) > 0 and all(0 <= c < IGNORE_INDEX for c in self.classes)
        require(fine, "adaptation.features.classes", self.classes, f"ids below {IGNORE_INDEX}")
        _share("features.min_ratio", self.min_ratio)


@dataclass(kw_only=True)
class MaskedConfig:
    """Cross-entropy on masked target images with the teacher's labels of the whole ones (MIC)."""

    weight: float = 0.0
    images: Literal["target", "both"] = "target"
    """Which images are masked. "both": every other one is a source image, with its own labels."""
    average: Literal["all", "valid"] = "all"
    start: int = 0
    ratio: float = 0.7
    """Share of the blocks that are hidden."""
    block: int = 64
    """Side of a block [pixels]; 32 for crops of 512."""
    augment: bool = True
    """Colour jitter and blur, drawn apart from the mixed images'; not at night or in fog."""

    def __post_init__(self) -> None:
        _count("masked.start", self.start)
        _count("masked.block", self.block, least=1)
        _share("masked.ratio", self.ratio)


@dataclass(kw_only=True)
class PixelConfig:
    """Pixel-wise contrast (PiPa, section 3.2)."""

    weight: float = 0.0
    images: Literal["source", "mixed", "both"] = "source"
    """Which images give anchors. Mixed images hold confident target pixels beside source ones."""
    start: int = 0
    ramp: int = 0
    """The weight grows linearly over `ramp` iterations from `start`."""
    temperature: float = 0.1
    base_temperature: float | None = None
    denominator: Literal["negatives", "all"] = "negatives"
    num_anchors: int | Literal["all"] = 1024
    confidence: float = 0.968
    """Target pixels in mixed images are anchors only at or above this teacher confidence."""
    weigh_by_confidence: bool = False
    """Weigh them by that confidence too, relative to source pixels, which weigh 1."""

    def __post_init__(self) -> None:
        for name in ("start", "ramp"):
            _count(f"pixel.{name}", getattr(self, name))
        _positive("pixel.temperature", self.temperature)
        if self.base_temperature is not None:
            _positive("pixel.base_temperature", self.base_temperature)
        _share("pixel.confidence", self.confidence)
        require(
            self.num_anchors == "all" or int(self.num_anchors) > 0,
            "adaptation.pixel.num_anchors",
            self.num_anchors,
            'a positive count, or "all"',
        )


@dataclass(kw_only=True)
class PatchConfig:
    """Consistency of two overlapping crops of one target image (PiPa, section 3.3)."""

    weight: float = 0.0
    start: int = 0
    ramp: int = 0
    temperature: float = 0.1
    confidence_threshold: float = 0.9
    num_pairs: int = 1600
    """Matching cells taken from the overlaps of a batch [pairs]."""
    bank: int = 9600
    """Keys kept from earlier steps [rows]."""
    bank_confidence: float = 0.0
    """Only keys of at least this teacher confidence are kept; the paper keeps all."""
    augment: bool = True
    """Photometric augmentation of the student's crops, drawn separately for each of the two."""
    first_is_target: bool = False
    """The first crop is the target image of the other terms too, as in the release: one image less
    to load, and one pass of the teacher less. It needs data.patch_crop to be data.crop."""
    branch: Literal["student", "teacher"] = "student"
    """"student" is the paper. "teacher" reproduces the release, for comparison: there the features
    come from the averaged network, whose parameters take no gradient, so that the term trains
    nothing but its own projection head and cannot change the student."""

    def __post_init__(self) -> None:
        for name, least in (("start", 0), ("ramp", 0), ("num_pairs", 1), ("bank", 1)):
            _count(f"patch.{name}", getattr(self, name), least=least)
        _positive("patch.temperature", self.temperature)
        for name in ("confidence_threshold", "bank_confidence"):
            _share(f"patch.{name}", getattr(self, name))


@dataclass(kw_only=True)
class AdaptationConfig:
    """The loss terms of a recipe."""

    source: SourceConfig = field(default_factory=SourceConfig)
    mixed: MixedConfig = field(default_factory=MixedConfig)
    features: FeatureConfig = field(default_factory=FeatureConfig)
    masked: MaskedConfig = field(default_factory=MaskedConfig)
    pixel: PixelConfig = field(default_factory=PixelConfig)
    patch: PatchConfig = field(default_factory=PatchConfig)
    ema_alpha: float = 0.999
    """Ceiling of the teacher's momentum min(1 - 1/(iteration + 1), ema_alpha)."""

    def __post_init__(self) -> None:
        require(
            0 <= self.ema_alpha < 1, "adaptation.ema_alpha", self.ema_alpha, "a number in [0, 1)"
        )
        for name in ("source", "features", "mixed", "masked", "pixel", "patch"):
            weight = getattr(self, name).weight
            fine = 0 <= weight < math.inf
            require(fine, f"adaptation.{name}.weight", weight, "a finite number of at least 0")
        terms = {
            "mixed": self.mixed,
            "masked": self.masked,
            "pixel": self.pixel,
            "patch": self.patch,
        }
        if self.source.weight == 0 and not any(t.weight and t.start == 0 for t in terms.values()):
            got = ", ".join(f"{k}.weight={t.weight} from step {t.start}" for k, t in terms.items())
            raise ValueError(
                "adaptation must have a term with a weight above 0 that counts from step 0; got "
                f"source.weight=0, {got}"
            )
        if self.pixel.weight > 0 and self.pixel.images != "source" and self.mixed.weight == 0:
            raise ValueError(
                f"adaptation.pixel.images={self.pixel.images!r} contrasts mixed images, which need "
                "adaptation.mixed.weight to be above 0; got 0"
            )

    @property
    def needs_teacher(self) -> bool:
        """Whether any term reads the averaged network."""
        return any(term.weight > 0 for term in (self.mixed, self.masked, self.patch))

    @property
    def needs_projections(self) -> bool:
        """Whether any term reads the embeddings of a projection head."""
        return self.pixel.weight > 0 or self.patch.weight > 0
