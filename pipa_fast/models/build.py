# SPDX-License-Identifier: Apache-2.0
"""A network from its settings."""

import torch

from pipa_fast.models.batch_norm import convert_batch_norm
from pipa_fast.models.config import ModelConfig
from pipa_fast.models.encoders import build_encoder, network_stride, patch_stride
from pipa_fast.models.heads import build_head
from pipa_fast.models.hrda import HRDANetwork, build_attention
from pipa_fast.models.network import SegmentationNetwork
from pipa_fast.models.projection import ProjectionHead


def build_network(config: ModelConfig) -> SegmentationNetwork:
    """Return the network that `config` describes, in training mode.

    Its weights follow torch's global seed; projection heads draw theirs last, so that the rest is
    the same with them and without.

    Raises:
        ValueError: weights that cannot be found or do not fit.
    """
    encoder = build_encoder(config)
    head = build_head(config, encoder.channels)
    attention = build_attention(config, encoder.channels) if config.hrda.enabled else None
    projections = {}
    if config.projections:
        joined = config.pixel_features == "encoder"
        width = sum(encoder.channels) if joined else head.channels
        projections["pixel"] = ProjectionHead(width, config.pixel_dim, joined=joined)
        pool = patch_stride(config) // network_stride(config)
        projections["patch"] = ProjectionHead(head.channels, config.patch_dim, pool=pool)
    if attention is None:
        network = SegmentationNetwork(encoder, head, projections)
    else:
        network = HRDANetwork(encoder, head, attention, projections, config.hrda)
    convert_batch_norm(network, config.batch_norm)
    if config.channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if config.compile:
        network.compile_encoder()
    return network
