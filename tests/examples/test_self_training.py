# SPDX-License-Identifier: Apache-2.0
"""Patch consistency in a self-training loop: it reaches the student, and does what it says."""

import pytest
import torch

from tests.examples.load import load


@pytest.fixture
def sure():
    """The example, and an untrained network that is sure of what it says."""
    example = load("self_training")
    start = example.Network()
    with torch.no_grad():
        start.classifier.weight *= 1000
    example.supervised = lambda network, scenes: torch.zeros(())
    return example, start


def test_example_runs(capsys):
    found = load("self_training").main(["--steps", "2"])
    assert list(found) == ["source only", "self-training", "with 0.1 * patch consistency"]
    assert all(0 < f["mIoU"] < 100 and f["any"] < f["same place"] < 1 for f in found.values())
    assert "patch loss" in capsys.readouterr().out


def test_patch_loss_trains_the_student(sure):
    """The teacher's labels are constants, so the gradient is the student's."""
    example, start = sure
    plain, patched = (example.adapt(start, weight, 1)[0] for weight in (0.0, 1.0))
    assert not torch.equal(plain.encoder[0].weight, patched.encoder[0].weight)
    assert not torch.equal(plain.projection.weight, patched.projection.weight)


def test_a_place_looks_more_alike_with_the_patch_consistency(sure):
    example, start = sure
    plain, patched = (example.adapt(start, weight, 8) for weight in (0.0, 10.0))
    assert patched[1] < plain[1]
    one, other = (example.measure(network)["same place"] for network, _ in (plain, patched))
    assert other > one + 0.02


def test_boxes_are_where_the_crops_come_from():
    example = load("self_training")
    scenes = example.Streets("real", "train")
    crops, boxes, flips = example.draw_crops(scenes, seed=1)
    drawn = example.np.random.default_rng(1).integers(len(scenes), size=4)
    for i, image in enumerate(drawn):
        for crop, (y0, x0, y1, x1), flip in zip(crops[i], boxes[i].tolist(), flips[i], strict=True):
            part = torch.tensor(scenes.image(int(image))[y0:y1, x0:x1]).permute(2, 0, 1) / 255
            assert torch.equal(crop, part.flip(2) if flip else part)
