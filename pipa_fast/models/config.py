# SPDX-License-Identifier: Apache-2.0
"""What a network is made of."""

from dataclasses import dataclass
from typing import Literal

from pipa_fast.checks import require

EncoderName = Literal["streets_s", "mit_b0", "mit_b1", "mit_b2", "mit_b3", "mit_b4", "mit_b5"]


@dataclass(kw_only=True)
class ModelConfig:
    """A segmentation network: encoder, head and projection heads."""

    encoder: EncoderName = "mit_b5"
    head: Literal["daformer", "light"] = "daformer"
    num_classes: int = 19
    weights: str | None = None
    """Folder or hub name of a Transformers SegFormer encoder; None starts from random weights."""
    pixel_dim: int = 256
    patch_dim: int = 128
    """Channels of the two projections."""
    projections: bool = True
    """Whether there are projection heads; training decides it from the objectives."""
    batch_norm: Literal["batch", "frozen", "sync"] = "batch"
    """Statistics of batch-norm layers: the batch's, fixed ones, or those of all ranks' batches."""
    drop_path: float = 0.1
    dropout: float = 0.1
    """Stochastic depth in MiT encoders, and dropout of whole channels in the DAFormer head."""

    def __post_init__(self) -> None:
        require(self.num_classes > 1, "model.num_classes", self.num_classes, "at least 2")
        for name in ("pixel_dim", "patch_dim"):
            dim = getattr(self, name)
            require(1 <= dim <= 512, f"model.{name}", dim, "a count of channels in 1 … 512")
        for name in ("drop_path", "dropout"):
            rate = getattr(self, name)
            require(0 <= rate < 1, f"model.{name}", rate, "a probability in [0, 1)")
        require(
            self.encoder != "streets_s" or self.weights is None,
            "model.weights",
            self.weights,
            "null for the encoder streets_s, which has no published weights",
        )
