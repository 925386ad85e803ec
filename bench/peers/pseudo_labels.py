# SPDX-License-Identifier: Apache-2.0
"""Peers of `ops.pseudo_labels`."""

from bench.peers import Peer, compiled
from bench.pseudo_labels import eager

FORMULA = "torch: F.interpolate, then softmax and its maximum"
PEERS = {
    "eager": Peer("eager formula", FORMULA, lambda: eager, 12),
    "compile": Peer("torch.compile of it", FORMULA, compiled(eager), 12, compiled=True),
}
