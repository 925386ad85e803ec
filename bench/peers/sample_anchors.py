# SPDX-License-Identifier: Apache-2.0
"""Peers of `ops.sample_anchors`."""

import torch
from torch import Tensor

from bench.peers import Peer
from bench.sample_anchors import QUOTAS

IMAGES_AND_CLASSES = "the lineage's way: a loop over images and classes, nonzero and randperm"


def loop(labels: Tensor, predictions: Tensor, *, seed: int) -> tuple[Tensor, Tensor]:
    """Draw class by class, with the op's quotas: the lineage leaves out classes of few pixels."""
    torch.manual_seed(seed)
    pixels, ignored = labels[0].numel(), QUOTAS["ignore_index"]
    rows, guesses = labels.flatten(1), predictions.flatten(1)
    present = [
        (image, int(label))
        for image in range(len(rows))
        for label in rows[image].unique()
        if int(label) != ignored
    ]
    quota = min(QUOTAS["num_anchors"] // max(1, len(present)), QUOTAS["max_per_class"])
    index, anchor_labels = [], []
    for image, label in present:
        own = rows[image] == label
        hard = (own & (guesses[image] != label)).nonzero().squeeze(1)
        easy = (own & (guesses[image] == label)).nonzero().squeeze(1)
        half = min(len(hard), int(quota * QUOTAS["hard_fraction"]))
        from_easy = min(len(easy), quota - half)
        from_hard = min(len(hard), quota - from_easy)
        # randperm on the host, as there
        hard = hard[torch.randperm(len(hard))[:from_hard].to(hard.device)]
        easy = easy[torch.randperm(len(easy))[:from_easy].to(easy.device)]
        drawn = torch.cat((hard, easy)) + image * pixels
        index.append(drawn)
        anchor_labels.append(torch.full_like(drawn, label))
    if not index:
        return rows.new_zeros(0), rows.new_zeros(0)
    return torch.cat(index), torch.cat(anchor_labels)


PEERS = {"lineage": Peer("loop over images and classes", IMAGES_AND_CLASSES, lambda: loop, 40)}
