# SPDX-License-Identifier: Apache-2.0
"""Networks: encoders, decode heads, projection heads."""

from pipa_fast.models.config import ModelConfig
from pipa_fast.models.encoders import network_stride
from pipa_fast.models.network import Outputs, SegmentationNetwork, build_network

__all__ = ["ModelConfig", "Outputs", "SegmentationNetwork", "build_network", "network_stride"]
