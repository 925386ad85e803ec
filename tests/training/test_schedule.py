# SPDX-License-Identifier: Apache-2.0
import pytest

from pipa_fast.training.schedule import learning_rate_factor


def test_decays_linearly_to_zero():
    factors = [learning_rate_factor(i, 10) for i in range(11)]
    assert factors == pytest.approx([1 - i / 10 for i in range(11)])


def test_warmup_is_a_line_on_top_of_the_decay():
    assert learning_rate_factor(0, 100, warmup=10) == pytest.approx(1e-6)
    half = learning_rate_factor(5, 100, warmup=10, warmup_ratio=0.2)
    assert half == pytest.approx(0.95 * 0.6)
    assert learning_rate_factor(10, 100, warmup=10) == pytest.approx(0.9)


def test_power():
    assert learning_rate_factor(50, 100, power=0.9) == pytest.approx(0.5**0.9)
