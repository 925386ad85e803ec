# SPDX-License-Identifier: Apache-2.0
"""A small network, a small dataset and a run's folder, none of which needs training."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipa_fast.data.labels import PALETTE
from pipa_fast.data.sample import Sample
from pipa_fast.evaluation.report import write_report


class Outputs(NamedTuple):
    logits: Tensor


class TinyNetwork(nn.Module):
    """Two convolutions at stride 4, with dropout and a batch norm whose modes can be seen."""

    stride = 4

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 4, stride=4), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.5)
        )
        self.classifier = nn.Conv2d(16, 19, 1)

    def forward(self, images: Tensor) -> Outputs:
        return Outputs(self.classifier(self.body(images)))


class Palettes:
    """Images of class-coloured blocks, so that the truth can be read off the image."""

    eval_classes = (0, 1, 2, 10, 13)

    def __init__(self, length: int = 7, size: tuple[int, int] = (24, 48)) -> None:
        self.length, self.size = length, size

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.length:
            raise IndexError(index)
        rng = np.random.default_rng(index)
        blocks = rng.choice(self.eval_classes, (self.size[0] // 8, self.size[1] // 8))
        label = np.kron(blocks, np.ones((8, 8))).astype(np.uint8)
        label[-4:] = 255
        image = PALETTE[np.minimum(label, 18)]
        return Sample(image, label, f"scene_{index:02d}")


@pytest.fixture
def network() -> TinyNetwork:
    return TinyNetwork()


@pytest.fixture
def dataset() -> Palettes:
    return Palettes()


@pytest.fixture
def make_network():
    return TinyNetwork


@pytest.fixture
def full(make_run, network, make_network, dataset):
    base = make_run("streets_source", 30.0, mixed=None)
    run = make_run(
        "streets_pipa", 42.25, mixed={"weight": 1.0, "<i>": 2, "note": "<script>alert(1)</script>"}
    )
    path = write_report(
        run,
        network=network,
        dataset=dataset,
        teacher=make_network(1),
        baseline_dir=base,
        baseline=make_network(2),
        num_panels=3,
    )
    return path
