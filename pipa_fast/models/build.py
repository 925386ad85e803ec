# SPDX-License-Identifier: Apache-2.0
"""A network from its settings."""

import torch
from torch import nn

from pipa_fast.models.config import BatchNorm, ModelConfig
from pipa_fast.models.encoders import build_encoder, network_stride, patch_stride
from pipa_fast.models.heads import build_head
from pipa_fast.models.hrda import HRDANetwork, build_attention
from pipa_fast.models.network import SegmentationNetwork
from pipa_fast.models.projection import ProjectionHead


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """Batch norm by stored statistics also in training; scale and shift still learn."""

    def train(self, mode: bool = True) -> "FrozenBatchNorm2d":
        """Stay in evaluation mode."""
        super().train(False)
        return self


def convert_batch_norm(network: nn.Module, kind: BatchNorm) -> None:
    """Give the batch norm layers inside `network` the statistics that `kind` names, in place."""
    if kind == "batch":
        return
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if type(child) is not nn.BatchNorm2d:
                continue
            if kind == "frozen":
                made = FrozenBatchNorm2d(child.num_features, eps=child.eps)
                made.load_state_dict(child.state_dict())
                made.train()
            else:
                made = nn.SyncBatchNorm.convert_sync_batchnorm(child)
            setattr(parent, name, made)


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
