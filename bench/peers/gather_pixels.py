# SPDX-License-Identifier: Apache-2.0
"""Peers of `ops.gather_pixels`."""

import torch.nn.functional as F
from torch import Tensor

from bench.peers import Peer

WHOLE_MAP = "the lineage's way: the whole map as rows (normalised before), then an index"


def eager(features: Tensor, index: Tensor, *, normalize: bool) -> Tensor:
    """Lay every pixel out as a row, then take some."""
    unit = F.normalize(features, dim=1) if normalize else features
    images, dim, height, width = unit.shape
    rows = unit.permute(0, 2, 3, 1).contiguous().view(images, height * width, dim)
    return rows[index // (height * width), index % (height * width)]


PEERS = {"lineage": Peer("whole map, then an index", WHOLE_MAP, lambda: eager, 0)}
