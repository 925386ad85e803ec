# SPDX-License-Identifier: Apache-2.0
import copy

import pytest
import torch

from pipa_fast.data.batch import Batch
from pipa_fast.models import ModelConfig, Outputs, build_network
from pipa_fast.uda import outputs as module
from pipa_fast.uda.config import FeatureConfig
from pipa_fast.uda.objectives.feature_distance import FeatureDistance
from pipa_fast.uda.outputs import StepOutputs, count_share


def a_network():
    torch.manual_seed(0)
    return build_network(ModelConfig(encoder="streets_s", projections=False))


def outputs_of(deep, images, labels):
    none = torch.zeros(0)
    batch = Batch(*[none] * len(Batch._fields))._replace(source_image=images)
    student = Outputs(logits=none, pixel=None, patch=None, deep=deep)
    return StepOutputs(batch, student, labels, None, None, torch.tensor(0), None)


def test_the_mean_is_over_cells_that_show_mostly_one_thing():
    """Cells of 16 x 16: a car fills 3/4 of two and 5/8 of one; a fourth is road, the rest none."""
    network, images = a_network(), torch.rand(1, 3, 32, 64)
    labels = torch.full((1, 32, 64), 255)
    labels[:, :12, :16] = labels[:, 20:, 48:] = 13
    labels[:, :10, 16:32] = 13
    labels[:, :16, 32:48] = 0
    with torch.no_grad():
        deep = network.encode(images)[-1]
    away = torch.tensor([[0.05, 2.0, 3.0, 3.0], [3.0, 3.0, 3.0, 0.25]])  # of each of 96 channels
    moved = (deep + away).requires_grad_()
    for least, mean in ((0.75, (0.05 + 0.25) / 2), (0.625, (0.05 + 2.0 + 0.25) / 3)):
        term = FeatureDistance(FeatureConfig(weight=1.0, min_ratio=least), network)
        moved.grad = None
        value = term(outputs_of(moved, images, labels))
        torch.testing.assert_close(value, mean * torch.tensor(96.0).sqrt())
        value.backward()
        reached = moved.grad.abs().sum((0, 1)) > 0
        assert reached.tolist() == [[True, least < 0.75, False, False], [False, False, False, True]]


def test_where_no_thing_is_the_distance_is_0_and_not_nan():
    network, images = a_network(), torch.rand(1, 3, 16, 32)
    term = FeatureDistance(FeatureConfig(weight=1.0), network)
    deep = torch.rand(1, 96, 1, 2, requires_grad=True)
    value = term(outputs_of(deep, images, torch.zeros(1, 16, 32, dtype=torch.long)))
    value.backward()
    assert value == 0 and not deep.grad.any()


def test_a_cell_of_one_rank_counts_whole_however_many_ranks_have_none(monkeypatch):
    """DDP's mean over eight ranks then is the mean over the one cell."""
    monkeypatch.setattr(module, "mean_over_ranks", lambda count, group: count / 8)
    network, images = a_network(), torch.rand(1, 3, 16, 32)
    term = FeatureDistance(FeatureConfig(weight=1.0), network)
    labels = torch.zeros(1, 16, 32, dtype=torch.long)
    labels[:, :, :16] = 13
    deep = network.encode(images)[-1].detach() + 2.0
    torch.testing.assert_close(
        term(outputs_of(deep, images, labels)), 8 * 2 * torch.tensor(96.0).sqrt()
    )
    assert count_share(labels == 13, None) == 8
    assert count_share(labels == 14, None) == 0


def test_at_the_start_the_gradient_is_finite():
    network, images = a_network(), torch.rand(1, 3, 16, 32)
    term = FeatureDistance(FeatureConfig(weight=1.0), network)
    deep = network.encode(images)[-1].detach().requires_grad_()
    value = term(outputs_of(deep, images, torch.full((1, 16, 32), 13)))
    value.backward()
    assert value == 0 and torch.isfinite(deep.grad).all()


def test_the_frozen_network_stays_behind_and_out_of_checkpoints():
    """It moves to another device or dtype with the term, and does nothing else."""
    network, images = a_network(), torch.rand(1, 3, 16, 32)
    term = FeatureDistance(FeatureConfig(weight=1.0), network)
    before = copy.deepcopy(network).encode(images)[-1]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1)
    term.train()
    assert not term.state_dict() and not list(term.parameters())
    assert term(outputs_of(before, images, torch.full((1, 16, 32), 13))) < 1e-5
    outputs = outputs_of(before.double(), images.double(), torch.full((1, 16, 32), 13))
    assert term.double()(outputs) < 1e-5


@pytest.mark.parametrize("classes", [(), (255,), (-1, 3)])
def test_classes_that_are_none_are_told(classes):
    with pytest.raises(ValueError, match=r"adaptation\.features\.classes"):
        FeatureConfig(classes=classes)
