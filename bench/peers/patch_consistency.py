# SPDX-License-Identifier: Apache-2.0
"""Peers of `ops.patch_consistency`."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from bench.peers import Peer, compiled, similarity

CHUNK = 8000  # keys of the chunked peer


def repulsion(
    anchors: Tensor, bank: Tensor, anchor_labels: Tensor, bank_labels: Tensor, temperature: float
) -> Tensor:
    """Return Σ exp(a·k/τ) over keys of other classes [N]."""
    other = anchor_labels[:, None] != bank_labels[None, :]
    return (similarity(anchors, bank, temperature).exp() * other).sum(1)


def loss_of(attraction: Tensor, repelled: Tensor) -> Tensor:
    """Return the mean of -log of the positive's share."""
    return -(attraction / (attraction + repelled)).log().mean()


def attraction(anchors: Tensor, positives: Tensor, temperature: float) -> Tensor:
    """Return exp(a·p/τ) [N]."""
    wide = torch.promote_types(anchors.dtype, torch.float32)
    return ((anchors.to(wide) * positives.to(wide)).sum(1) / temperature).exp()


def eager(
    anchors: Tensor,  # [N, D]
    positives: Tensor,  # [N, D]
    bank: Tensor,  # [M, D]
    anchor_labels: Tensor,  # [N]
    bank_labels: Tensor,  # [M]
    *,
    temperature: float,
) -> Tensor:
    """The dense formula, with exponentials as they are."""
    pull = attraction(anchors, positives, temperature)
    return loss_of(pull, repulsion(anchors, bank, anchor_labels, bank_labels, temperature))


def chunked(
    anchors: Tensor,
    positives: Tensor,
    bank: Tensor,
    anchor_labels: Tensor,
    bank_labels: Tensor,
    *,
    temperature: float,
) -> Tensor:
    """As PiPa's lineage does it: 8000 keys at a time, recomputed in the backward pass."""
    repelled = torch.zeros_like(anchors[:, 0], dtype=torch.float32)
    for keys, key_labels in zip(bank.split(CHUNK), bank_labels.split(CHUNK), strict=True):
        repelled = repelled + checkpoint(
            repulsion, anchors, keys, anchor_labels, key_labels, temperature, use_reentrant=False
        )
    return loss_of(attraction(anchors, positives, temperature), repelled)


FORMULA = "PiPa (arXiv 2211.07609), equation 4"
PEERS = {
    "eager": Peer("eager formula", FORMULA, lambda: eager, 18),
    "compile": Peer("torch.compile of it", FORMULA, compiled(eager), 10, compiled=True),
    "chunked": Peer("chunked, checkpointed", FORMULA, lambda: chunked, 18),
}
