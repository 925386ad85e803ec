# SPDX-License-Identifier: Apache-2.0
"""A batch in parts has the losses and the gradient of the batch at once."""

import contextlib

import pytest
import torch

from pipa_fast.models import HRDAConfig, ModelConfig, build_network
from pipa_fast.training.config import load, merge, read_recipe
from pipa_fast.uda.accumulation import InParts
from pipa_fast.uda.config import AdaptationConfig
from pipa_fast.uda.objectives import build_objectives
from pipa_fast.uda.step import AdaptationStep
from pipa_fast.uda.teacher import Teacher
from tests.uda.test_step import EVERYTHING, a_batch

DETAIL = HRDAConfig(enabled=True, detail=(16, 16))
MIT = ModelConfig(encoder="mit_b0", head="daformer", batch_norm="frozen", dropout=0, drop_path=0)


def whole_batch():
    """Five images, of which no number of parts but five and one are alike."""
    one, other = a_batch(), a_batch()
    many = [
        torch.cat((a, b, a[:1].flip(-1))) if a.ndim else a for a, b in zip(one, other, strict=True)
    ]
    return type(one)(*many)._replace(index=torch.arange(5), boxes=one.boxes[[0, 1, 0, 1, 0]])


def step_of(model, size):
    """A step's losses, and what every parameter has of gradient."""
    torch.manual_seed(0)
    config = AdaptationConfig(**EVERYTHING)
    network = build_network(model)
    objectives = build_objectives(config, model, network)
    with torch.no_grad():  # away from the frozen network, where the feature distance is 0
        for parameter in network.parameters():
            parameter.mul_(1.01)
    student = network if size is None else InParts(network, size)
    step = AdaptationStep(
        student, Teacher(network), objectives, config, seed=0, autocast=contextlib.nullcontext
    )
    losses = step(whole_batch(), 0)
    assert step.network is network
    return losses, {name: p.grad for name, p in network.named_parameters()}, network


@pytest.mark.parametrize(
    "size", [2, 10, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 3))]
)
@pytest.mark.parametrize(
    "model",
    [
        ModelConfig(batch_norm="frozen"),
        ModelConfig(batch_norm="frozen", hrda=DETAIL),
        pytest.param(MIT, marks=pytest.mark.slow),
    ],
    ids=["streets", "hrda", "mit"],
)
def test_every_term_and_gradient_is_the_batch_s(model, size):
    losses, gradients, _ = step_of(model, None)
    found, parts, _ = step_of(model, size)
    assert losses.keys() == found.keys() and len(losses) == 7
    for name, value in losses.items():
        assert value > 0, f"{name} is 0 and compares nothing"
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)
    largest = max(value.norm() for value in gradients.values())
    for name, value in gradients.items():  # some are nothing but rounding
        error = (parts[name] - value).norm() / (value.norm() + 1e-4 * largest)
        assert error < 1e-3, f"{name}: {error:.1e}"


def test_no_more_than_so_many_images_are_seen_at_once():
    torch.manual_seed(0)
    network = build_network(ModelConfig(batch_norm="frozen"))
    seen = []
    network.encoder.register_forward_hook(lambda _, images, out: seen.append(len(images[0])))
    images = torch.rand(5, 3, 32, 32)
    logits = InParts(network, 2)(images).logits
    assert seen == [2, 2, 1]
    logits.sum().backward()
    assert sorted(seen) == [1, 1, 2, 2, 2, 2], "each part is computed again, once"
    seen.clear()
    with torch.no_grad():
        torch.testing.assert_close(InParts(network, 2)(images).logits, logits)
    assert seen == [2, 2, 1]
    seen.clear()
    InParts(network, 5)(images).logits.sum().backward()
    assert seen == [5], "a batch that fits is not computed again"


@pytest.mark.parametrize("size", [2, 5])
def test_each_part_has_its_own_of_a_fused_map(size):
    network = build_network(ModelConfig(batch_norm="frozen"))
    images = torch.rand(5, 3, 32, 32)
    fused = network.fused(torch.rand(5, 3, 32, 32)).detach()
    logits = InParts(network, size)(images, fused=fused).logits
    torch.testing.assert_close(logits, network.head.classify(fused))


def test_random_layers_draw_alike_in_both_passes():
    """Else the gradient would be another function's."""
    model = ModelConfig(encoder="mit_b0", head="segformer", batch_norm="frozen", dropout=0.5)
    torch.manual_seed(0)
    network = InParts(build_network(model), 1)
    images = torch.rand(2, 3, 32, 32)
    weight = network.module.head.conv_seg.weight

    def loss():
        torch.manual_seed(1)
        return network(images).logits.square().sum()

    loss().backward()
    gradient, step = weight.grad.clone(), 1e-2
    with torch.no_grad():
        direction = gradient / gradient.norm()
        weight.add_(step * direction)
        above = loss()
        weight.sub_(2 * step * direction)
        below = loss()
    torch.testing.assert_close((above - below) / (2 * step), gradient.norm(), rtol=1e-2, atol=0)


def test_settings_that_are_no_whole_batch_are_refused():
    recipe = merge(read_recipe("streets_pipa"), {"data": {"micro_batch": 1}})
    with pytest.raises(ValueError, match="model.batch_norm must be frozen with data.micro_batch"):
        load(recipe)
    load(merge(recipe, {"model": {"batch_norm": "frozen"}}))
    with pytest.raises(ValueError, match="data.micro_batch must be a positive count, or null"):
        load(merge(recipe, {"data": {"micro_batch": 0}}))
    with pytest.raises(ValueError, match="size must be a positive count of images; got 0"):
        InParts(build_network(ModelConfig()), 0)
