# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels' algorithm against float64, and the kernels' partial sums against it."""

import itertools

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("pipa_fast._host")

from pipa_fast._host import cuda
from pipa_fast.ops import _patch_consistency_cuda as patch
from pipa_fast.ops import _pixel_contrast_cuda as pixel
from pipa_fast.reference import patch_consistency as reference_patch
from pipa_fast.reference import pixel_contrast as reference_pixel
from pipa_fast.reference.pixel_contrast import Settings
from tests.csrc.cuda_model import Model
from tests.csrc.two_ranks import errors, two_ranks

SIZES = [1, 2, 15, 16, 17, 83]  # around a block of 16 rows, and several
LABELS = {
    "mixed": lambda n: torch.randint(0, 5, (n,)).masked_fill(torch.rand(n) < 0.15, 255),
    "one class": lambda n: torch.zeros(n, dtype=torch.int64),
    "a class of one": lambda n: (torch.arange(n) == n // 2).long(),
    "all ignored": lambda n: torch.full((n,), 255),
    "each its own": lambda n: torch.arange(n),
}


def unit_rows(n, d=16):
    return F.normalize(torch.randn(n, d, dtype=torch.float64), dim=1)


def close(found, expected):
    """To what share and pair, which are float32, leave."""
    assert found.isfinite().all()
    assert (found - expected).norm() <= 5e-7 * expected.norm() + 1e-12


def check_pixel_contrast(model, monkeypatch, x, labels, weights, form):
    monkeypatch.setattr(pixel, "KERNELS", model)
    settings, grad = (0.1, form, 255), x.new_ones(())
    loss, *saved = pixel.forward(x, labels, weights, *settings)
    gradient = pixel.backward(grad, x, labels, weights, *saved, *settings)
    loss_64, *saved = reference_pixel.forward(x, labels, weights, *settings)
    close(loss, loss_64)
    close(gradient, reference_pixel.backward(grad, x, labels, weights, *saved, *settings))


@pytest.mark.parametrize("form", ["negatives", "all"])
@pytest.mark.parametrize("kind", list(LABELS))
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("cluster", [1, 2])
def test_pixel_contrast(cluster, n, kind, form, monkeypatch):
    torch.manual_seed(n)
    weights = torch.rand(n, dtype=torch.float64) if kind == "mixed" else None
    model, case = Model(cluster=cluster), (unit_rows(n), LABELS[kind](n), weights)
    check_pixel_contrast(model, monkeypatch, *case, form)


@pytest.mark.parametrize(("n", "d", "rows"), [(310, 8, 16), (70, 24, 64), (130, 8, 128)])
@pytest.mark.parametrize("cluster", [1, 2])
def test_pixel_contrast_of_other_tiles(cluster, n, d, rows, monkeypatch):
    """The first has more shifts than a launch of 8 takes; the second a last part of 8 columns."""
    torch.manual_seed(n)
    case = unit_rows(n, d), LABELS["mixed"](n), None
    check_pixel_contrast(Model(rows, 16, cluster=cluster), monkeypatch, *case, "negatives")


@pytest.mark.parametrize("form", ["negatives", "all"])
@pytest.mark.parametrize("kind", list(LABELS))
@pytest.mark.parametrize(("n", "m"), [(1, 1), (15, 7), (17, 30), (50, 70)])
@pytest.mark.parametrize("cluster", [1, 2])
def test_pixel_contrast_of_two_ranks(cluster, n, m, kind, form, monkeypatch):
    torch.manual_seed(n)
    monkeypatch.setattr(pixel, "KERNELS", Model(cluster=cluster))
    settings = Settings(0.1, form, 255)
    cases = two_ranks(unit_rows(n + m), LABELS[kind](n + m), n, settings)
    for _, found, _, truth in errors(pixel, cases, settings):
        close(found, truth)


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("kind", list(LABELS))
@pytest.mark.parametrize(("n", "m"), [(1, 0), (2, 1), (15, 7), (16, 8), (17, 9), (50, 70)])
@pytest.mark.parametrize("cluster", [1, 2])
def test_patch_consistency(cluster, n, m, kind, splits, monkeypatch):
    torch.manual_seed(n)
    monkeypatch.setattr(patch, "KERNELS", Model(cluster=cluster))
    monkeypatch.setattr(patch, "PROGRAMS", 10**6)
    monkeypatch.setattr(patch, "MAX_SPLITS", splits)
    labels = [made.masked_fill(made == 255, -1) for made in (LABELS[kind](n), LABELS[kind](m))]
    case = unit_rows(n), unit_rows(n), unit_rows(m), *labels, None, 0.1
    for found, expected in zip(patch.forward(*case), reference_patch.forward(*case), strict=True):
        close(found, expected)


@pytest.mark.parametrize(("mine", "keys"), [([0, 1], [1]), ([0, 1], [0]), ([0, 1, 2], [0, 0, 2])])
def test_keys_of_one_class_are_met_by_anchors_whose_class_has_none(
    mine, keys, kernels, monkeypatch
):
    monkeypatch.setattr(patch, "KERNELS", kernels)
    torch.manual_seed(0)
    rows = [unit_rows(count) for count in (len(mine), len(mine), len(keys))]
    settings = torch.tensor(mine), torch.tensor(keys), None, 0.1
    loss, _ = patch.forward(*(r.float() for r in rows), *settings)
    expected, _ = reference_patch.forward(*rows, *settings)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("d", [64, 128])
def test_kernels_put_each_partial_sum_where_the_model_does(d, kernels):
    """Tiles of 128 x 64, the largest; of 128 columns, clusters of two on Hopper."""
    torch.manual_seed(0)
    model = Model(128, 64, cluster=2 if (d, kernels.chip) == (128, "sm_90a") else 1)
    labels = torch.randint(0, 5, (330,)).masked_fill(torch.arange(330) % 50 == 0, 255)
    rows = pixel.Side.of(unit_rows(330, d).bfloat16(), labels, 255)
    keys = pixel.Side.of(unit_rows(200, d).bfloat16(), torch.randint(0, 5, (200,)), 0)
    for form, others in itertools.product(("negatives", "all"), (None, keys)):
        problem = pixel.Meeting.of(rows, others).problem(0.1, form)
        sums = [k.pixel_contrast_denominators(*problem).double() for k in (kernels, model)]
        if others is None:
            width, _ = cuda.slots_of(330, 128, d)
            used = [cuda.slot_of_shift(1, 1), cuda.slot_of_program(0, width)]
            assert (sums[1][[*used, cuda.slot_of_part(0, width)]] > 0).any(1).all()
        else:
            sums = [s.sum(0)[:300] for s in sums]  # a share's tiles are wider on Hopper; 323 live
        torch.testing.assert_close(*sums, rtol=1e-4, atol=0)
        if form == "all":
            parts = [k.pixel_contrast_cosines(*problem).double() for k in (kernels, model)]
        else:
            z = sums[1].sum(0).float() if others is None else torch.rand(len(problem[1]))
            parts = [k.pixel_contrast_positives(*problem, z).double() for k in (kernels, model)]
        torch.testing.assert_close(*parts, rtol=1e-4, atol=1e-5)
