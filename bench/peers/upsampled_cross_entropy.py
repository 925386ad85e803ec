# SPDX-License-Identifier: Apache-2.0
"""Peers of `ops.upsampled_cross_entropy`."""

from bench.peers import Peer, compiled
from bench.upsampled_cross_entropy import eager

FORMULA = "torch: F.interpolate, then F.cross_entropy"
PEERS = {
    "eager": Peer("eager formula", FORMULA, lambda: eager, 16),
    "compile": Peer("torch.compile of it", FORMULA, compiled(eager), 16, compiled=True),
}
