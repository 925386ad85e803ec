# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from pipa_fast.models import ModelConfig, build_network
from pipa_fast.uda.teacher import Teacher, momentum


@pytest.fixture
def student():
    torch.manual_seed(0)
    return build_network(ModelConfig(encoder="streets_s", head="light", projections=True))


def test_momentum_rises_to_the_ceiling():
    assert [momentum(i, 0.999) for i in (0, 1, 3)] == [0.0, 0.5, 0.75]
    assert momentum(10**6, 0.999) == 0.999


def test_first_update_copies_and_the_next_averages(student):
    teacher = Teacher(student)
    before = {k: v.clone() for k, v in teacher.network.named_parameters()}
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1.0)
    teacher.update(student, 1)
    for name, parameter in teacher.network.named_parameters():
        torch.testing.assert_close(parameter, before[name] + 0.5)


def test_the_teacher_takes_no_gradient_and_no_projection(student):
    teacher = Teacher(student)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not any("projection" in name for name, _ in teacher.named_parameters())
    logits = teacher(torch.rand(1, 3, 32, 32))
    assert not logits.requires_grad


def test_dropout_stays_off_in_training_mode():
    network = build_network(ModelConfig(encoder="mit_b0", head="daformer", projections=False))
    teacher = Teacher(network)
    training = {}
    for module in teacher.modules():
        training.setdefault(type(module).__name__, set()).add(module.training)
    kinds = ("Dropout", "Dropout2d", "SegformerDropPath", "BatchNorm2d")
    assert [training[kind] for kind in kinds] == [{False}, {False}, {False}, {True}]
    assert not any(module.training for module in teacher.eval().modules())
