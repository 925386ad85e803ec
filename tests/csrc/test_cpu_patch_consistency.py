# SPDX-License-Identifier: Apache-2.0
"""csrc/cpu/patch_consistency against the equation in float64, on each instruction set here."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.equations import patch_consistency as truth
from tests.equations import unit_rows

# Anchors, keys, columns. Anchors go in blocks of 96, keys in blocks of 64 and slabs of 3/4 N.
SIZES = [(0, 9, 8), (9, 0, 8), (1, 1, 1), (5, 7, 5), (6, 16, 64), (96, 64, 130), (97, 200, 33)]
SIZES += [(20, 700, 16), (300, 500, 24), (64, 65, 512)]


def problem(n: int, m: int, d: int, classes: int = 4):
    anchors = unit_rows(n, d)
    positives = F.normalize(anchors + 0.3 * torch.randn(n, d), dim=1)
    labels = torch.randint(-1, classes, (n,)), torch.randint(-2, classes + 2, (m,))
    return anchors, positives, unit_rows(m, d), *labels


def check(native, isa, arguments, weights, temperature=0.1):
    loss, gradient = native.patch_consistency_forward(*arguments, weights, temperature, isa)
    expected, expected_gradient = truth(*arguments, weights, temperature)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-9)
    size = expected_gradient.norm()
    if size > 0:
        assert (gradient.double() - expected_gradient).norm() / size < 1e-5
        torch.testing.assert_close(
            gradient.double(), expected_gradient, rtol=1e-3, atol=float(2e-6 * size)
        )
    else:
        assert not gradient.any()
    return loss, gradient


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_loss_and_gradient_are_the_equation(native, isa, size):
    arguments = problem(*size)
    for weights in (None, torch.rand(size[0]), (torch.rand(size[0]) > 0.5).float()):
        check(native, isa, arguments, weights)


def test_layouts_of_labels(native, isa):
    anchors, positives, bank, _, _ = problem(200, 300, 16)
    zeros, ones = torch.zeros(200).long(), torch.ones(300).long()
    far = torch.tensor([0, 2**62, 5])
    for anchor_labels, bank_labels in (
        (zeros, 0 * ones),  # no negatives
        (zeros, ones),  # all are
        (zeros, -ones),  # a bank that is not filled yet
        (zeros - 1, ones),  # no anchors
        (torch.arange(200), torch.arange(300)),
        (far[torch.arange(200) % 3], far[torch.arange(300) % 3]),
        (zeros, torch.where(torch.arange(300) < 250, -1, 1)),
    ):
        loss, _ = check(native, isa, (anchors, positives, bank, anchor_labels, bank_labels), None)
        if (anchor_labels < 0).all() or (bank_labels < 0).all():
            assert loss == 0


@pytest.mark.parametrize("temperature", [2 / 80, 0.07, 2.0])
def test_any_temperature_that_a_fixed_shift_carries(native, isa, temperature):
    anchors = F.normalize(torch.ones(30, 8) + 0.02 * torch.randn(30, 8), dim=1)
    labels = torch.zeros(30).long(), torch.ones(50).long()
    for sign in (1, -1):  # easy pairs, or negatives nearer than the positive
        keys = F.normalize(-sign * torch.ones(50, 8) + 0.02 * torch.randn(50, 8), dim=1)
        loss, gradient = native.patch_consistency_forward(
            anchors, sign * anchors, keys, *labels, None, temperature, isa
        )
        expected, expected_gradient = truth(
            anchors, sign * anchors, keys, *labels, None, temperature
        )
        torch.testing.assert_close(loss.double(), expected, rtol=3e-5, atol=0)
        torch.testing.assert_close(
            gradient.double(), expected_gradient, rtol=1e-3, atol=float(expected.abs() * 1e-3)
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types_are_converted_exactly(native, isa, dtype):
    anchors, positives, bank, *labels = problem(120, 150, 20)
    halves = [t.to(dtype) for t in (anchors, positives, bank)]
    half = native.patch_consistency_forward(*halves, *labels, None, 0.1, isa)
    full = native.patch_consistency_forward(*[t.float() for t in halves], *labels, None, 0.1, isa)
    assert all(torch.equal(a, b) for a, b in zip(half, full, strict=True))


def test_products_of_bfloat16_are_those_of_floats(native, bf16_isa):
    # Products of bfloat16 are exact in float, so only the order of their sums differs.
    for n, m, d in SIZES:
        anchors, positives, bank, *labels = problem(n, m, d)
        halves = [t.bfloat16() for t in (anchors, positives, bank)]
        loss, gradient = native.patch_consistency_forward(*halves, *labels, None, 0.1, bf16_isa)
        expected, slope = native.patch_consistency_forward(
            *[t.float() for t in halves], *labels, None, 0.1, bf16_isa.removesuffix("_bf16")
        )
        torch.testing.assert_close(loss, expected, rtol=2e-6, atol=1e-9)
        assert (gradient - slope).norm() <= 5e-6 * slope.norm()


def test_bf16_sets_treat_other_dtypes_as_those_without(native, bf16_isa):
    anchors, positives, bank, *labels = problem(120, 150, 24)
    halves = anchors.bfloat16(), positives.bfloat16()
    for rows in ((anchors, positives, bank), (*halves, bank)):
        found = [
            native.patch_consistency_forward(*rows, *labels, None, 0.1, isa)
            for isa in (bf16_isa, bf16_isa.removesuffix("_bf16"))
        ]
        assert all(torch.equal(*results) for results in zip(*found, strict=True))


def test_threads_do_not_change_a_bit(native, isa, threads):
    arguments = problem(900, 1500, 24, classes=7)
    results = []
    for count in (1, 2, 4, 8, 4, 1):
        threads(count)
        results.append(native.patch_consistency_forward(*arguments, None, 0.1, isa))
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))
    check(native, isa, arguments, None)


def test_nan_is_not_hidden(native, isa):
    for which in range(3):
        arguments = problem(60, 80, 16)
        arguments[3].fill_(0), arguments[4].fill_(1)
        arguments[which][7, 3] = torch.nan
        loss, gradient = native.patch_consistency_forward(*arguments, None, 0.1, isa)
        assert loss.isnan() and gradient.isnan().any()


def test_wrong_arguments_are_refused(native):
    good = problem(8, 9, 4)

    def refused(match: str, change: dict[int, Tensor], temperature: float = 0.1, isa: str = ""):
        arguments = [change.get(i, t) for i, t in enumerate(good)]
        with pytest.raises(RuntimeError, match=match):
            native.patch_consistency_forward(*arguments, None, temperature, isa)

    refused("positives must have the shape of anchors", {1: torch.zeros(7, 4)})
    refused("bank must have 4 columns, got 5", {2: torch.zeros(9, 5)})
    refused("anchor_labels must be", {3: good[3][:7]})
    refused("bank_labels must be", {4: good[4].int()})
    refused("temperature must be at least", {}, temperature=0.0)
    refused("isa must be", {}, isa="neon")
