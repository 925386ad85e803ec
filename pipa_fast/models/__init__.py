# SPDX-License-Identifier: Apache-2.0
"""Networks: encoders, decode heads, projection heads."""

from pipa_fast.models.build import build_network
from pipa_fast.models.config import HRDAConfig, ModelConfig
from pipa_fast.models.encoders import coarsest_stride, network_stride, patch_stride
from pipa_fast.models.network import Outputs, SegmentationNetwork, size_multiple
from pipa_fast.models.window import Window

__all__ = [
    "HRDAConfig",
    "ModelConfig",
    "Outputs",
    "SegmentationNetwork",
    "Window",
    "build_network",
    "coarsest_stride",
    "network_stride",
    "patch_stride",
    "size_multiple",
]
