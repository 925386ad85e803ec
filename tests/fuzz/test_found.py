# SPDX-License-Identifier: Apache-2.0
"""What the fuzzing has found, one test each."""

import pytest
import torch
import torch.nn.functional as F

from bench.soak import process
from pipa_fast import ops
from pipa_fast.bank import FeatureBank
from pipa_fast.losses import PatchConsistencyLoss
from tests.fuzz.contrast import Patch, Pixel, check_patch, check_pixel
from tests.fuzz.maps import Maps, by_way, check_cross_entropy

BACKENDS = ops.backends("pixel_contrast", "cpu")
backend = pytest.mark.parametrize("backend", BACKENDS)


def rows(n: int, d: int = 8) -> torch.Tensor:
    return F.normalize(torch.randn(n, d), dim=1)


@backend
@pytest.mark.parametrize("denominator", ["negatives", "all"])
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_pixel_contrast_hides_no_infinite_feature(backend, denominator, value):
    """An infinite cosine's exponential was clamped, or 0, and the loss 88.03."""
    for row in range(3):
        x = rows(3, 1)
        x[row] = value
        labels = torch.tensor([1, 1, 2])
        loss = ops.pixel_contrast(x, labels, denominator=denominator, backend=backend)
        assert not loss.isfinite()


@backend
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("place", range(3))
def test_patch_consistency_hides_no_infinite_feature(backend, value, place):
    given = [rows(4), rows(4), rows(5)]
    given[place][2, 3] = value
    labels = torch.zeros(4).long(), torch.ones(5).long()
    assert not ops.patch_consistency(*given, *labels, backend=backend).isfinite()


@backend
def test_nan_of_rows_that_take_no_part_reaches_no_gradient(backend):
    """0 · nan was in the reference's products, and nan in every row's gradient."""
    for denominator in ("negatives", "all"):
        x = rows(6)
        x[2] = torch.nan
        x.requires_grad_()
        labels = torch.tensor([0, 0, 255, 1, 1, 2])
        ops.pixel_contrast(x, labels, denominator=denominator, backend=backend).backward()
        assert x.grad.isfinite().all() and x.grad.any() and not x.grad[2].any()
    anchors, positives, bank = rows(4), rows(4), rows(5)
    anchors[0], positives[1], bank[2] = torch.nan, torch.inf, torch.nan
    anchors.requires_grad_()
    labels = torch.tensor([-1, 0, 0, 0]), torch.tensor([1, 1, -1, 1, 0])
    weights = torch.tensor([1.0, 0, 1, 1])
    loss = ops.patch_consistency(
        anchors, positives, bank, *labels, weights=weights, backend=backend
    )
    loss.backward()
    assert loss.isfinite() and loss > 0
    assert anchors.grad.isfinite().all() and anchors.grad[2:].any() and not anchors.grad[:2].any()


@backend
def test_nan_under_ignored_pixels_reaches_no_gradient(backend):
    check_cross_entropy(
        Maps(classes=1, small=(1, 1), full=(1, 1), ignored=1.0, bad="nan", way=backend)
    )


@backend
@pytest.mark.parametrize("wrong", [-1, 3, 2**40, -(2**63)])
def test_a_label_that_is_no_class_is_a_value_error(backend, wrong):
    labels = torch.zeros(1, 4, 4, dtype=torch.int64)
    labels[0, 1, 2] = wrong
    with by_way(backend), pytest.raises(ValueError, match=f"labels must be .*{wrong}"):
        ops.upsampled_cross_entropy(torch.zeros(1, 3, 2, 2), labels)


def test_a_pixel_past_the_end_is_a_value_error():
    features = torch.randn(1, 4, 3, 3)
    for wrong in (9, 2**40):
        with pytest.raises(ValueError, match=f"index must be below 9, .*got {wrong}"):
            ops.gather_pixels(features, torch.tensor([0, wrong, -1]))


@pytest.mark.parametrize("wrong", [2**30, -(2**30) - 1, 2**62, -(2**63), 2**31 + 1])
def test_labels_past_the_sorting_key_are_refused(wrong):
    """They were sorted by their lower bits, and drawn as other classes."""
    labels = torch.ones(1, 2, 2, dtype=torch.int64)
    labels[0, 0, 0] = wrong
    with pytest.raises(ValueError, match="labels must be in"):
        ops.sample_anchors(labels, labels, seed=0)
    labels[0, 0, 0] = -(2**30)
    index, drawn = ops.sample_anchors(labels, labels, seed=0, num_anchors=4, ignore_index=1)
    assert drawn[0] == -(2**30) and index[0] == 0


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64], ids=str)
def test_unsigned_labels_beside_other_predictions(dtype):
    labels = torch.randint(0, 3, (1, 4, 4))
    expected = ops.sample_anchors(labels, labels, seed=0)
    found = ops.sample_anchors(labels.to(dtype), labels, seed=0)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize("wrong", [1.5, "255", None, True, 2**63], ids=str)
def test_an_ignore_index_that_no_label_can_be(wrong):
    labels = torch.zeros(1, 2, 2, dtype=torch.int64)
    for call in (
        lambda: ops.pixel_contrast(rows(4), labels.flatten(), ignore_index=wrong),
        lambda: ops.sample_anchors(labels, labels, seed=0, ignore_index=wrong),
        lambda: ops.downscale_labels(labels, stride=1, num_classes=2, ignore_index=wrong),
        lambda: ops.upsampled_cross_entropy(torch.zeros(1, 2, 2, 2), labels, ignore_index=wrong),
    ):
        with pytest.raises(ValueError, match="ignore_index must be"):
            call()


def test_sparse_tensors_are_refused():
    sparse = torch.ones(4).to_sparse()
    with pytest.raises(ValueError, match="weights must be a dense tensor"):
        ops.pixel_contrast(rows(4), torch.zeros(4).long(), weights=sparse)
    with pytest.raises(ValueError, match="labels must be a dense tensor"):
        ops.pixel_contrast(rows(4), sparse.long())
    with pytest.raises(ValueError, match="features must be a dense tensor"):
        ops.pixel_contrast(rows(4).to_sparse(), torch.zeros(4).long())


def test_a_seed_is_looked_at_where_nothing_is_drawn():
    empty = torch.zeros(0, 2, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match="seed must be"):
        ops.sample_anchors(empty, empty, seed="7")  # type: ignore[arg-type]
    boxes, flips = empty.new_zeros(0, 2, 4), torch.zeros(0, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="seed must be"):
        ops.overlap_pairs(boxes, flips, crop_size=4, stride=2, num_pairs=3, seed=torch.ones(2))


def test_what_a_bank_cannot_keep_is_told():
    bank = FeatureBank(3, 2)
    for wrong in (None, [1, 2], torch.tensor(1), torch.ones(2)):
        with pytest.raises(ValueError, match="labels must be"):
            bank.push(torch.zeros(2, 2), wrong)  # type: ignore[arg-type]


def test_views_of_no_pixels_are_told():
    maps = torch.zeros(1, 4, 4, dtype=torch.int64), torch.zeros(1, 4, 4)
    view = torch.zeros(1, 3, 0, 2)
    boxes, flips = torch.tensor([[[0, 0, 2, 2]] * 2]), torch.zeros(1, 2, dtype=torch.bool)
    given = (maps[0], maps[0], maps[1], maps[1], boxes, flips)
    with pytest.raises(ValueError, match="view_a must be"):
        PatchConsistencyLoss()(view, view, *given)
    full = torch.zeros(1, 3, 2, 2)
    with pytest.raises(ValueError, match="view_b must be"):
        PatchConsistencyLoss()(full, full.long(), *given)


@backend
def test_one_tensor_may_be_several_arguments(backend):
    for same in ("positives", "bank", "positives bank"):
        check_patch(Patch(n=9, m=9, same=same, labels=("few", "few"), way=backend))


@backend
def test_layouts_that_kernels_do_not_take_as_they_are(backend):
    for layout in ("transposed", "every other", "inside", "expanded", "negated"):
        check_pixel(Pixel(n=13, d=9, layout=layout, label_layout=layout, way=backend))


def test_native_calls_keep_nothing():
    """The soak's 448 bytes a step: torch's stable ABI leaked the string argument of each call."""
    pytest.importorskip("pipa_fast._C")
    x, labels = rows(20), torch.arange(20) % 3

    def call() -> None:
        y = x.clone().requires_grad_()
        ops.pixel_contrast(y, labels, backend="cpu").backward()
        ops.patch_consistency(x, x, x, labels, labels, backend="cpu")

    for _ in range(100):
        call()
    before = process()["allocated"]
    for _ in range(1000):
        call()
    assert process()["allocated"] - before < 20 * 1000
