# SPDX-License-Identifier: Apache-2.0
"""The losses as modules: what they sample, resize, store and let through."""

import copy
import math
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from pipa_fast import ops
from pipa_fast.bank import FeatureBank
from pipa_fast.losses import PatchConsistencyLoss, PixelContrastLoss, resize_nearest


def embeddings(images=2, dim=8, height=6, width=5):
    return torch.randn(images, dim, height, width)


def unit_rows(maps):
    return F.normalize(maps.permute(0, 2, 3, 1).flatten(0, 2), dim=1)


# ---- resizing ----


@pytest.mark.parametrize(("full", "size"), [((8, 12), (2, 3)), ((7, 5), (3, 4)), ((3, 4), (6, 5))])
def test_resize_is_nearest_exact(full, size):
    maps = torch.randint(0, 255, (2, *full), dtype=torch.uint8)
    expected = F.interpolate(maps[:, None].float(), size, mode="nearest-exact")[:, 0]
    assert torch.equal(resize_nearest(maps, size).float(), expected)
    assert resize_nearest(maps, full) is maps


def test_resize_of_other_maps_is_refused():
    maps = torch.zeros(2, 8, 6)
    with pytest.raises(ValueError, match="maps must be of shape"):
        resize_nearest(maps[:, None], (4, 3))
    for size in (4, (2, 4, 3), (4, -1), (4, 1.5)):
        with pytest.raises(ValueError, match="size must be two lengths"):
            resize_nearest(maps, size)


# ---- pixel contrast ----


@pytest.mark.parametrize("denominator", ["negatives", "all"])
def test_dense_pixel_contrast(denominator):
    maps = embeddings().requires_grad_()
    labels = torch.randint(0, 3, (2, 24, 20), dtype=torch.uint8)
    labels[0, :8] = 255
    loss = PixelContrastLoss(0.2, 0.07, denominator, "all")(maps, labels)
    rows, small = unit_rows(maps), resize_nearest(labels, (6, 5)).flatten()
    expected = (
        ops.pixel_contrast(rows, small, temperature=0.2, denominator=denominator) * 0.2 / 0.07
    )
    torch.testing.assert_close(loss, expected)
    (gradient,), (truth,) = (torch.autograd.grad(x, maps) for x in (loss, expected))
    torch.testing.assert_close(gradient, truth)
    assert PixelContrastLoss(0.2, 0.07, denominator, "all", False)(
        F.normalize(maps, dim=1), labels
    ).item() == pytest.approx(loss.item(), rel=1e-5)


def test_sampled_pixel_contrast_is_that_of_its_anchors():
    maps, labels = embeddings(), torch.randint(0, 3, (2, 12, 10))
    predictions = torch.randint(0, 3, (2, 6, 5))
    weights = torch.rand(2, 12, 10)
    seed = torch.tensor(3)
    loss = PixelContrastLoss(num_anchors=30, max_per_class=4, hard_fraction=0.25)(
        maps, labels, predictions, weights=weights, seed=seed
    )
    index, anchor_labels = ops.sample_anchors(
        resize_nearest(labels, (6, 5)),
        predictions,
        seed=seed,
        num_anchors=30,
        max_per_class=4,
        hard_fraction=0.25,
    )
    expected = ops.pixel_contrast(
        unit_rows(maps)[index],
        anchor_labels,
        weights=resize_nearest(weights, (6, 5)).flatten()[index],
    )
    torch.testing.assert_close(loss, expected)
    # without predictions no pixel is hard
    every = PixelContrastLoss(num_anchors=30, max_per_class=4, hard_fraction=0.0)
    alike = PixelContrastLoss(num_anchors=30, max_per_class=4)
    assert alike(maps, labels, seed=1) == every(maps, labels, labels, seed=1)


def test_calls_without_a_seed_differ_and_resume():
    maps, labels = embeddings(), torch.randint(0, 3, (2, 6, 5))
    loss = PixelContrastLoss(num_anchors=12)
    first = [loss(maps, labels).item() for _ in range(2)]
    state = copy.deepcopy(loss.state_dict())
    third = loss(maps, labels).item()
    assert len({*first, third}) == 3
    resumed = PixelContrastLoss(num_anchors=12)
    resumed.load_state_dict(state)
    assert resumed(maps, labels).item() == third
    assert loss(maps, labels, seed=5) == loss(maps, labels, seed=torch.tensor(5))
    assert loss.step == 3, "a given seed is no call to count"


def test_pixel_contrast_of_nothing():
    for images in (2, 0):
        for anchors in (16, "all"):
            maps = embeddings(images).requires_grad_()
            labels = torch.full((images, 6, 5), 255)
            loss = PixelContrastLoss(num_anchors=anchors)(
                maps, labels, labels, weights=torch.ones(images, 6, 5)
            )
            loss.backward()
            assert loss.item() == 0 and maps.grad.abs().sum() == 0


def test_pixel_contrast_under_autocast_and_compile():
    maps, labels = embeddings().requires_grad_(), torch.randint(0, 3, (2, 12, 10))
    loss = PixelContrastLoss(num_anchors=20)
    with torch.autocast("cpu", torch.bfloat16):
        low = loss(maps, labels, seed=0)
    assert low.dtype == torch.float32
    seed = torch.tensor(0)
    torch.testing.assert_close(low, loss(maps, labels, seed=seed), rtol=0.02, atol=0.02)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    eager = copy.deepcopy(loss)
    for _ in range(2):  # the step is counted in the graph
        torch.testing.assert_close(compiled(maps, labels), eager(maps, labels))


def test_pixel_contrast_bad_arguments():
    for name, settings in (
        ("temperature", {"temperature": 0}),
        ("base_temperature", {"base_temperature": 0}),
        ("base_temperature", {"base_temperature": float("inf")}),
        ("num_anchors", {"num_anchors": "some"}),
        ("num_anchors", {"num_anchors": 0}),
        ("num_anchors", {"num_anchors": True}),
        ("denominator", {"denominator": "none"}),
        ("hard_fraction", {"hard_fraction": 2}),
        ("hard_fraction", {"hard_fraction": None}),
        ("max_per_class", {"max_per_class": 0}),
        ("max_per_class", {"max_per_class": 2.5}),
        ("ignore_index", {"ignore_index": None}),
    ):
        with pytest.raises(ValueError, match=name):
            PixelContrastLoss(**settings)
    maps, labels = embeddings(), torch.zeros(2, 6, 5, dtype=torch.int64)
    for name, args in (
        ("embeddings", (maps[0], labels)),
        ("embeddings", (maps.long(), labels)),
        ("embeddings must be .* D <= 512", (torch.zeros(2, 513, 6, 5), labels)),
        ("labels", (maps, labels[0])),
        ("labels", (maps, labels[:1])),
        ("labels", (maps, labels.float())),
        ("labels", (maps, labels[:, :0])),
        ("predictions", (maps, labels, labels[:1])),
    ):
        with pytest.raises(ValueError, match=name):
            PixelContrastLoss()(*args)
    with pytest.raises(ValueError, match="backend"):
        PixelContrastLoss(max_per_class=1, backend="none")(maps, labels)


# ---- patch consistency ----


def views(images=2, dim=8, size=(6, 8), stride=4):
    """Two crops of random feature images: where they overlap, they agree."""
    height, width = size
    whole = torch.randn(images, dim, height + 4, width + 4)
    classes = torch.randint(0, 3, (images, height + 4, width + 4))
    offsets, flips = torch.randint(0, 5, (images, 2, 2)), torch.rand(images, 2) < 0.5
    maps, labels = [], []
    for view in (0, 1):
        crops = []
        for source in (whole, classes[:, None]):
            own = [
                source[b, :, y : y + height, x : x + width]
                for b, (y, x) in enumerate(offsets[:, view].tolist())
            ]
            crops.append(
                torch.stack(
                    [c.flip(2) if f else c for c, f in zip(own, flips[:, view], strict=True)]
                )
            )
        maps.append(crops[0])
        labels.append(crops[1][:, 0])
    corner = offsets * stride
    boxes = torch.cat((corner, corner + torch.tensor(size) * stride), dim=2)
    return *maps, *labels, boxes, flips


def sure(labels, value):
    return torch.full(labels.shape, value)


def arguments(**how):
    """Two views of which the second is the surer in every cell."""
    *maps, labels_a, labels_b, boxes, flips = views(**how)
    return (*maps, labels_a, labels_b, sure(labels_a, 0.5), sure(labels_b, 0.95), boxes, flips)


@pytest.mark.parametrize("scale", [1, 3])
def test_patch_consistency_is_that_of_matching_cells(scale):
    """Written out with one direction, since only one view is the more confident."""
    view_a, view_b, labels_a, labels_b, boxes, flips = views()
    large = [
        y.repeat_interleave(scale, 1).repeat_interleave(scale, 2) for y in (labels_a, labels_b)
    ]
    a, b = (v.clone().requires_grad_() for v in (view_a, view_b))
    loss = PatchConsistencyLoss(num_pairs=1000)(
        a, b, *large, sure(large[0], 0.5), sure(large[1], 0.95), boxes, flips
    )
    loss.backward()
    index_a, index_b = ops.overlap_pairs(
        boxes, flips, crop_size=(24, 32), stride=4, num_pairs=1000, seed=0
    )
    index_a, index_b = index_a[index_a >= 0], index_b[index_b >= 0]
    anchors = unit_rows(view_a)[index_a].requires_grad_()
    torch.testing.assert_close(anchors.detach(), unit_rows(view_b)[index_b])  # they do match
    classes = labels_b.flatten()[index_b]
    assert torch.equal(classes, labels_a.flatten()[index_a])
    keys = anchors.detach()
    both = (torch.cat((keys, keys)), classes, torch.cat((classes, classes)))  # views' keys
    expected = ops.patch_consistency(anchors, keys, *both)
    torch.testing.assert_close(loss, expected)
    assert loss > 0 and a.grad.abs().max() > 0
    assert b.grad is None or b.grad.abs().max() == 0  # the surer view is a constant


def test_each_view_teaches_where_it_is_surer():
    view_a, view_b, labels_a, labels_b, boxes, flips = views()
    a, b = (v.clone().requires_grad_() for v in (view_a, view_b))
    loss_fn = PatchConsistencyLoss(num_pairs=1000)

    def gradients(sure_a, sure_b):
        loss = loss_fn(a, b, labels_a, labels_b, sure_a, sure_b, boxes, flips, seed=0)
        return loss, *torch.autograd.grad(loss, (a, b))

    high, higher, low = (sure(labels_a, value) for value in (0.92, 0.97, 0.8))
    for sure_a, sure_b, flows in (
        (high, higher, (True, False)),
        (higher, high, (False, True)),
        (high, high, (False, False)),  # neither is the surer
        (low, sure(labels_a, 0.9), (False, False)),  # the threshold itself is not above it
    ):
        loss, *slopes = gradients(sure_a, sure_b)
        assert tuple(bool(slope.abs().max() > 0) for slope in slopes) == flows
        assert bool(loss > 0) == any(flows)
    # both directions are one mean over their anchors
    sure_a = torch.where(torch.rand(labels_a.shape) < 0.5, 0.92, 0.97)
    loss, *slopes = gradients(sure_a, sure(labels_a, 0.95))
    assert loss > 0 and all(slope.abs().max() > 0 for slope in slopes)


def test_anchor_is_compared_under_the_surer_label():
    view_a, view_b, labels_a, labels_b, boxes, flips = views()
    given = (view_a, view_b), (sure(labels_a, 0.5), sure(labels_b, 0.95), boxes, flips)
    loss_fn = PatchConsistencyLoss(num_pairs=1000).eval()
    stored = FeatureBank(50, 8)
    stored.push(F.normalize(torch.randn(50, 8), dim=1), torch.arange(50) % 3)
    loss_fn.bank = stored
    other = (labels_a + 1) % 3
    assert loss_fn(*given[0], labels_a, labels_b, *given[1]) == loss_fn(
        *given[0], other, labels_b, *given[1]
    )


@pytest.mark.parametrize("none", [255, -1])
def test_pixels_without_a_label_take_no_part(none):
    view_a, view_b, labels_a, labels_b, boxes, flips = views()
    bank = FeatureBank(1000, 8)
    loss_fn = PatchConsistencyLoss(bank=bank, num_pairs=1000)
    args = (sure(labels_a, 0.5), sure(labels_b, 0.95), boxes, flips)
    nothing = torch.full_like(labels_a, none)
    assert loss_fn(view_a, view_b, nothing, nothing, *args) == 0
    assert (bank.labels == -1).all()


def test_bank_stores_in_training_only():
    *_, boxes, flips = args = arguments()
    alone, bank = PatchConsistencyLoss(num_pairs=1000), FeatureBank(2000, 8)
    loss_fn = PatchConsistencyLoss(bank=bank, num_pairs=1000)
    first = loss_fn(*args)
    torch.testing.assert_close(first, alone(*args))  # present keys are among the negatives
    stored = int((bank.labels >= 0).sum())
    index, _ = ops.overlap_pairs(boxes, flips, crop_size=(24, 32), stride=4, num_pairs=1000, seed=0)
    assert stored == 2 * int((index >= 0).sum())
    torch.testing.assert_close(bank.keys[:stored].norm(dim=1), torch.ones(stored))
    assert loss_fn(*args) > first  # twice the negatives
    before = copy.deepcopy(loss_fn.state_dict())
    assert "bank.keys" in before
    loss_fn.eval()
    loss_fn(*args, seed=0)
    assert all(torch.equal(v, before[k]) for k, v in loss_fn.state_dict().items())


def test_bank_takes_only_confident_keys():
    *maps, labels_a, labels_b, boxes, flips = views()
    bank = FeatureBank(2000, 8)
    loss_fn = PatchConsistencyLoss(bank=bank, num_pairs=1000, bank_confidence=0.9)
    loss_fn(*maps, labels_a, labels_b, sure(labels_a, 0.5), sure(labels_b, 0.95), boxes, flips)
    index, _ = ops.overlap_pairs(boxes, flips, crop_size=(24, 32), stride=4, num_pairs=1000, seed=0)
    assert int((bank.labels >= 0).sum()) == int((index >= 0).sum()) > 0  # one view's, not both's
    loss_fn(*maps, labels_a, labels_b, sure(labels_a, 0.5), sure(labels_b, 0.8), boxes, flips)
    assert int((bank.labels >= 0).sum()) == int((index >= 0).sum())


def test_calls_without_a_seed_draw_other_pairs_and_are_counted():
    args = arguments()
    loss_fn = PatchConsistencyLoss(num_pairs=8)
    values = {loss_fn(*args).item() for _ in range(3)}
    assert len(values) == 3 and loss_fn.step == 3
    assert loss_fn(*args, seed=0).item() in values and loss_fn.step == 3


def test_rows_are_taken_as_they_are_where_nothing_normalizes_them():
    """Two cells, by hand; the other cell, of both views, is the only negative."""
    a = torch.tensor([[0.6, 0.0], [0.0, 0.5]]).view(1, 2, 1, 2)  # by channel: (0.6, 0), (0, 0.5)
    labels, boxes = torch.tensor([[[0, 1]]]), torch.tensor([[[0, 0, 1, 2]] * 2])
    args = (a, a, labels, labels, sure(labels, 0.5), sure(labels, 0.95), boxes)
    flips = torch.zeros(1, 2, dtype=torch.bool)
    loss = PatchConsistencyLoss(0.5, normalize=False)(*args, flips)
    # at a right angle to it
    each = [math.log1p(2 * math.exp((0 - own) / 0.5)) for own in (0.36, 0.25)]
    assert loss.item() == pytest.approx(sum(each) / 2, rel=1e-5)


def test_weights_per_image():
    args = arguments(images=3)
    loss_fn = PatchConsistencyLoss(num_pairs=1000)
    bank = FeatureBank(99, 8)
    bank.push(F.normalize(torch.randn(99, 8), dim=1), torch.arange(99) % 3)
    loss_fn.bank = bank
    loss_fn.eval()
    part = loss_fn(*[t[:2] for t in args])
    torch.testing.assert_close(loss_fn(*args, weights=torch.tensor([2.0, 2.0, 0.0])), part)


def test_patch_consistency_of_nothing():
    for images in (2, 0):
        maps = [m.requires_grad_() for m in (embeddings(images), embeddings(images))]
        labels = torch.zeros(images, 6, 5, dtype=torch.uint8)
        boxes = torch.tensor([[[0, 0, 12, 10], [12, 0, 24, 10]]]).expand(images, 2, 4)
        flips = torch.zeros(images, 2, dtype=torch.bool)
        loss_fn = PatchConsistencyLoss(bank=FeatureBank(30, 8), num_pairs=20)
        confident = sure(labels, 1.0), sure(labels, 0.95)
        loss = loss_fn(*maps, labels, labels, *confident, boxes, flips, weights=torch.ones(images))
        loss.backward()
        assert loss.item() == 0 and all(m.grad.abs().sum() == 0 for m in maps)
        assert (loss_fn.bank.labels == -1).all()


def test_patch_consistency_under_autocast_and_compile():
    args = arguments()
    loss_fn = PatchConsistencyLoss(bank=FeatureBank(500, 8), num_pairs=100)
    eager, low = copy.deepcopy(loss_fn), copy.deepcopy(loss_fn)
    compiled = torch.compile(loss_fn, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        expected = eager(*args)
        torch.testing.assert_close(compiled(*args), expected)
        with torch.autocast("cpu", torch.bfloat16):
            value = low(*args)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected, rtol=0.02, atol=0.02)


def test_compile_leaves_the_size_of_views_open():
    loss_fn = PatchConsistencyLoss(bank=FeatureBank(500, 8), num_pairs=100)
    eager = copy.deepcopy(loss_fn)
    compiled = torch.compile(loss_fn, fullgraph=True, backend="aot_eager")
    for size in ((6, 8), (5, 7), (8, 6)):
        args = arguments(size=size)
        torch.testing.assert_close(compiled(*args), eager(*args))


def test_patch_consistency_bad_arguments():
    for name, settings in (
        ("temperature", {"temperature": -1}),
        ("confidence_threshold", {"confidence_threshold": 90}),
        ("bank_confidence", {"bank_confidence": -0.1}),
        ("bank", {"bank": 9600}),
        ("num_pairs", {"num_pairs": 0}),
        ("num_pairs", {"num_pairs": 1.5}),
        ("confidence_threshold", {"confidence_threshold": "0.9"}),
        ("ignore_index", {"ignore_index": 2.5}),
    ):
        with pytest.raises(ValueError, match=name):
            PatchConsistencyLoss(**settings)
    a, b, la, lb, ca, cb, boxes, flips = arguments()
    for name, args in (
        ("view_a", (a[0], b, la, lb, ca, cb, boxes, flips)),
        (
            "view_a must be .* D <= 512",
            (torch.zeros(2, 513, 8, 8), b, la, lb, ca, cb, boxes, flips),
        ),
        ("view_b", (a, b[:1], la, lb, ca, cb, boxes, flips)),
        ("labels_b", (a, b, la, lb.float(), ca, cb, boxes, flips)),
        ("confidence_a", (a, b, la, lb, la, cb, boxes, flips)),
        ("boxes", (a, b, la, lb, ca, cb, boxes[:1], flips[:1])),
        ("boxes", (a, b, la, lb, ca, cb, boxes.to("meta"), flips)),
        ("view_a must be .* h, w > 0", (a[:, :, :0], b, la, lb, ca, cb, boxes, flips)),
        ("view_a must be .* h, w > 0", (a[..., :0], b, la, lb, ca, cb, boxes, flips)),
    ):
        with pytest.raises(ValueError, match=name):
            PatchConsistencyLoss()(*args)
    with pytest.raises(ValueError, match="backend"):
        PatchConsistencyLoss(backend="none")(a, b, la, lb, ca, cb, boxes, flips)
    loss_fn = PatchConsistencyLoss(bank=FeatureBank(9, 5))
    with pytest.raises(ValueError, match="view_a must be .* D = 5"):
        loss_fn(a, b, la, lb, ca, cb, boxes, flips)
    assert loss_fn.step == 0, "what is refused draws nothing"


# ---- alone ----

# Runs in a process of its own, in which these packages are as if they were not installed.
ALONE = """
import sys
sys.modules.update(dict.fromkeys(sys.argv[1:]))
import torch
from pipa_fast.losses import PixelContrastLoss

embeddings = torch.randn(2, 8, 6, 5, requires_grad=True)
PixelContrastLoss()(embeddings, torch.randint(0, 3, (2, 24, 20))).backward()
assert embeddings.grad.any()
"""


def test_the_losses_need_torch_numpy_and_nvtx_alone():
    project = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text())
    names = [re.match(r"\w+", line)[0] for line in project["project"]["dependencies"]]
    imported = {"Pillow": "PIL", "PyYAML": "yaml"}
    absent = {imported.get(name, name) for name in names} - {"torch", "numpy", "nvtx"}
    subprocess.run([sys.executable, "-c", ALONE, *absent], check=True)
