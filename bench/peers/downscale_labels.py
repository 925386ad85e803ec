# SPDX-License-Identifier: Apache-2.0
"""Peers of `ops.downscale_labels`."""

import torch.nn.functional as F
from torch import Tensor

from bench.peers import Peer

PLANES = "the lineage's way (DAFormer's feature distance): a plane for each class, averaged"


def planes(labels: Tensor, *, stride: int, num_classes: int, min_ratio: float) -> Tensor:
    """Lay out one plane of floats for each class, and one for no class."""
    known = labels.clone()
    known[known == 255] = num_classes
    shares = F.one_hot(known, num_classes + 1).permute(0, 3, 1, 2).float()
    share, label = F.avg_pool2d(shares, stride).max(dim=1)
    label[label == num_classes] = 255
    label[share < min_ratio] = 255
    return label


PEERS = {"lineage": Peer("a plane for each class", PLANES, lambda: planes, 240)}
