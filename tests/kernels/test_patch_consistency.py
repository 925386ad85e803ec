# SPDX-License-Identifier: Apache-2.0
"""kernels/patch_consistency against the equation in float64."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")
from pipa_fast.kernels import _launch
from pipa_fast.kernels import patch_consistency as kernels
from pipa_fast.kernels._launch import Tile, TileRow
from tests.equations import patch_consistency as truth

SMALL = tuple(
    TileRow(chip, 512, w, Tile(16, 16, 4, 1), "") for chip in (80, 89, 90) for w in (2, 4)
)
# What products in the dtype cost: e is rounded to it before it meets the keys.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 3e-4, torch.bfloat16: 3e-3}


@pytest.fixture
def small_tiles(monkeypatch):
    """Many tiles of few rows, which the interpreter is quick with."""
    monkeypatch.setattr(kernels, "TILES", SMALL)


def problem(device, n, m, d, classes=4, dtype=torch.float32):
    anchors = F.normalize(torch.randn(n, d), dim=1)
    positives = F.normalize(anchors + 0.3 * torch.randn(n, d), dim=1)
    bank = F.normalize(torch.randn(m, d), dim=1)
    labels = torch.randint(-1, classes, (n,)), torch.randint(-2, classes + 2, (m,))
    return [t.to(device, dtype) for t in (anchors, positives, bank)] + [
        t.to(device) for t in labels
    ]


def check(arguments, weights=None, temperature=0.1):
    loss, slope = kernels.forward(*arguments, weights, temperature)
    expected, gradient = truth(*arguments, weights, temperature)
    tolerance = TOLERANCE[arguments[0].dtype]
    assert loss.dtype == slope.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-9)
    size = gradient.norm()
    if size == 0:
        assert not slope.any()
        return loss, slope
    assert (slope.double() - gradient).norm() <= tolerance * size
    torch.testing.assert_close(
        slope.double(), gradient, rtol=100 * tolerance, atol=float(tolerance * size)
    )
    cosine = F.cosine_similarity(slope.double().flatten(), gradient.flatten(), dim=0)
    assert cosine > 1 - tolerance**2
    return loss, slope


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    "size", [(1, 1, 1), (5, 7, 5), (16, 32, 16), (33, 70, 24), (20, 90, 130)], ids=str
)
def test_loss_and_gradient_are_the_equation(device, small_tiles, size, dtype):
    arguments = problem(device, *size, dtype=dtype)
    check(arguments)
    check(arguments, (torch.rand(size[0]) > 0.4).float().to(device) * torch.rand(1).to(device))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_shipped_tiles(device, dtype):
    for dim in (8, 200):
        check(problem(device, 40, 90, dim, dtype=dtype), torch.rand(40).to(device))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_shipped_tiles_of_every_depth(device, dtype):
    for dim in (16, 48, 64, 100, 128, 256, 384, 512):
        check(problem(device, 130, 300, dim, dtype=dtype), torch.rand(130).to(device))


def test_nothing_to_sum(device):
    for n, m in ((0, 9), (9, 0), (0, 0)):
        loss, slope = check(problem(device, n, m, 8))
        assert loss == 0 and slope.shape == (n, 8)


def test_layouts_of_labels(device, small_tiles):
    anchors, positives, bank, _, _ = problem(device, 40, 70, 16)
    zeros, ones = torch.zeros(40).long(), torch.ones(70).long()
    far = torch.tensor([0, 2**62, 5])
    nothing = 0.0 * zeros.float()
    for anchor_labels, bank_labels, weights in (
        (zeros, 0 * ones, None),  # no negatives
        (zeros, ones, None),  # all are
        (zeros, -ones, None),  # a bank that is not filled yet
        (zeros - 1, ones, None),  # no anchors
        (zeros, ones, nothing),  # none confident
        (torch.arange(40), torch.arange(70), None),
        (torch.arange(40) // 16, torch.arange(70) // 16, None),  # classes as wide as tiles
        (far[torch.arange(40) % 3], far[torch.arange(70) % 3], None),
        (zeros, torch.where(torch.arange(70) < 50, -1, 1), None),
        ((torch.arange(40) >= 10).long() - 1, torch.where(torch.arange(70) < 50, -1, 1), None),
        (zeros, (torch.arange(70) >= 40).long(), None),  # whole tiles of one class, and a part
        (zeros + 7, torch.arange(70) % 3, None),  # a class that the bank lacks
    ):
        labels = anchor_labels.to(device), bank_labels.to(device)
        weights = weights if weights is None else weights.to(device)
        loss, _ = check((anchors, positives, bank, *labels), weights)
        if (anchor_labels < 0).all() or (bank_labels < 0).all() or weights is nothing:
            assert loss == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("temperature", [2 / 80, 0.07, 2.0])
def test_any_temperature_that_a_fixed_shift_carries(device, small_tiles, temperature, dtype):
    anchors = F.normalize(torch.ones(20, 8) + 0.02 * torch.randn(20, 8), dim=1)
    labels = torch.zeros(20).long().to(device), torch.ones(40).long().to(device)
    for sign in (1, -1):  # easy pairs, or negatives nearer than the positive
        keys = F.normalize(-sign * torch.ones(40, 8) + 0.02 * torch.randn(40, 8), dim=1)
        rows = [t.to(device, dtype) for t in (anchors, sign * anchors, keys)]
        loss, slope = kernels.forward(*rows, *labels, None, temperature)
        expected, gradient = truth(*rows, *labels, None, temperature)
        torch.testing.assert_close(loss.double(), expected, rtol=3e-5, atol=0)
        assert (slope.double() - gradient).norm() <= 10 * TOLERANCE[dtype] * gradient.norm()


def test_sums_relative_to_the_largest_move_with_it(device, small_tiles, monkeypatch):
    monkeypatch.setattr(kernels, "PROGRAMS", 1)  # which meets a larger e again and again
    check(problem(device, 16, 200, 16, dtype=torch.float16), temperature=0.05)


def test_programs_that_share_anchors_add_in_order(device, small_tiles, monkeypatch):
    arguments = problem(device, 40, 200, 16)
    single = None
    for programs in (1, 6, 1000):
        monkeypatch.setattr(kernels, "PROGRAMS", programs)
        once, again = (kernels.forward(*arguments, None, 0.1) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
        single = single or once
        torch.testing.assert_close(once, single, rtol=1e-5, atol=1e-7)


def test_any_layout_of_memory(device, small_tiles):
    arguments = problem(device, 20, 30, 16)
    strided = [
        t.T.contiguous().T if t.dim() == 2 else t[:, None].expand(-1, 2)[:, 0] for t in arguments
    ]
    expected = kernels.forward(*arguments, None, 0.1)
    assert all(
        torch.equal(a, b)
        for a, b in zip(kernels.forward(*strided, None, 0.1), expected, strict=True)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_not_hidden(device, small_tiles, value, dtype):
    """Of anchors that like their positives and no key, infinite cosines lose nothing."""
    for which in range(3):
        arguments = problem(device, 20, 40, 16)
        for rows, sign in zip(arguments[:3], (1, 1, -1), strict=True):
            rows[:, 3] = sign * rows[:, 3].abs()
        arguments[3].fill_(0), arguments[4].fill_(1)
        arguments[which][7, 3] = value
        rows = [t.to(dtype) for t in arguments[:3]]
        loss, slope = kernels.forward(*rows, *arguments[3:], None, 0.05)
        assert loss.isnan() and slope.isnan().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("m", [40, 48])
def test_rows_that_count_for_nothing_may_be_anything(device, small_tiles, m, dtype):
    """Of 40 keys, the last tile is partly filled; the first of the bank is none of them."""
    arguments = problem(device, 20, m, 16, dtype=dtype)
    arguments[3][0], arguments[4][0] = -1, -1
    for temperature in (0.1, 0.05):  # e as it is, and relative to the largest
        expected = kernels.forward(*arguments, None, temperature)
        assert expected[0].isfinite() and expected[1].isfinite().all()
        for value in (torch.nan, torch.inf):
            a, p, k = (rows.clone() for rows in arguments[:3])
            a[arguments[3] < 0] = p[arguments[3] < 0] = k[arguments[4] < 0] = value
            found = kernels.forward(a, p, k, *arguments[3:], None, temperature)
            assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


def test_memory_does_not_grow_with_the_bank(device, host_bytes):
    n, d = 4096, 128
    for m in (1000, 300_000):
        arguments = [*problem(device, n, 1, d)[:2], torch.empty(m, d, device=device)]
        labels = [torch.zeros(k, dtype=torch.int64, device=device) for k in (n, m)]
        total = host_bytes(kernels.forward, *arguments, *labels, None, 0.05)
        # the slope itself, 3 · N · D floats, and the order of labels
        assert total <= 4 * 4 * n * d + 64 * n + 20 * m + 4096


def test_host_waits_for_no_value(device, needs_no_value):
    for dtype in (torch.float32, torch.float16):
        arguments = problem(device, 30, 50, 24, dtype=dtype)
        needs_no_value(kernels.forward, *arguments, torch.rand(30, device=device), 0.05)


def test_every_chip_has_tiles():
    for chip in _launch.SHARED_MEMORY:
        for depth in (16, 32, 64, 128, 256, 512):
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                assert _launch.choose_tile(kernels.TILES, chip, depth, dtype).warps in (4, 8)
