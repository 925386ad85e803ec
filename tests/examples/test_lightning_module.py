# SPDX-License-Identifier: Apache-2.0
"""The LightningModule trains under Lightning's Trainer; skipped where lightning is missing."""

import pytest
import torch

from tests.examples.load import load

pytest.importorskip("lightning")


@pytest.mark.filterwarnings("ignore")
def test_losses_fall_and_the_network_is_scored():
    history, miou = load("lightning_module").main(["--steps", "15"])
    assert len(history) == 15
    assert history[-1]["cross_entropy"] < history[0]["cross_entropy"]
    assert 0 < miou <= 100


@pytest.mark.filterwarnings("ignore")
def test_contrast_trains_the_projection_and_counts_in_the_state():
    example = load("lightning_module")
    module = example.Segmentation(width=8)
    module.log_dict = lambda values: None  # there is no Trainer
    batch = example.collate(example.Streets("synthetic", "train")[:2])
    module.training_step(batch, 0).backward()
    assert float(module.projection.weight.grad.abs().sum()) > 0
    assert torch.equal(module.state_dict()["contrast.step"], torch.tensor(1))
