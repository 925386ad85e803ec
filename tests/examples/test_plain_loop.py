# SPDX-License-Identifier: Apache-2.0
"""The contrast in a plain loop changes what is learnt, and both losses fall."""

import torch

from tests.examples.load import load


def test_both_losses_fall_and_classes_come_apart(capsys):
    found = load("plain_loop").main(["--steps", "15"])
    without, with_contrast = found.values()
    assert without["last"] < without["first"] and with_contrast["last"] < with_contrast["first"]
    assert with_contrast["contrast"] < without["contrast"]  # it is trained only in the second run
    assert with_contrast["apart"] != without["apart"]
    assert "0.1 * contrast" in capsys.readouterr().out


def test_contrast_reaches_the_encoder():
    example = load("plain_loop")
    one, other = (example.train(weight, 1, seed=0, device="cpu")[0] for weight in (0.0, 1.0))
    first, second = (n.encoder[0].weight.detach() for n in (one, other))
    assert not torch.equal(first, second)


def test_measure_tells_classes_apart():
    """Features that are their class, and features that are noise."""
    example = load("plain_loop")
    scenes = example.Streets("synthetic", "val")[:2]
    _, labels = example.to_tensors(scenes)
    network = example.Network()
    cells = example.resize_nearest(labels, (32, 64)).clamp(max=31)
    known = torch.nn.functional.one_hot(cells, 32).permute(0, 3, 1, 2).float()
    network.encoder.forward = lambda images: known
    assert example.measure(network, scenes, "cpu")["own"] > 0.99
    noise = torch.randn_like(known)
    network.encoder.forward = lambda images: noise
    assert example.measure(network, scenes, "cpu")["own"] < 0.5
