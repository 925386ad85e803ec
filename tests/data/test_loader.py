# SPDX-License-Identifier: Apache-2.0
import itertools

import numpy as np
import pytest
import torch

from pipa_fast.data.batch import Batch
from pipa_fast.data.loader import DataConfig, TrainingSet, batches, unpacked
from pipa_fast.data.sample import Sample


class Scenes:
    """Ten random scenes, whose first channel is the label times ten."""

    eval_classes = (0, 1, 2)

    def __init__(self, seed=0, count=10, size=(24, 40)):
        generator = np.random.default_rng(seed)
        self.samples = []
        for index in range(count):
            label = generator.integers(0, 4, (size[0] // 4, size[1] // 4)).repeat(4, 0).repeat(4, 1)
            image = generator.integers(0, 256, (*size, 3)).astype(np.uint8)
            image[..., 0] = label * 10
            self.samples.append(Sample(image, label.astype(np.uint8), f"scene {index}"))

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]

    def image(self, index):
        return self[index].image

    def label(self, index):
        return self[index].label


class Unlabelled(Scenes):
    """Scenes whose labels nobody may look at."""

    class Secret:
        name = "secret"

        def __init__(self, image):
            self.image = image

        @property
        def label(self):
            raise AssertionError("the target's label was touched")

        def __iter__(self):
            raise AssertionError("the target's label was touched")

        def __getitem__(self, index):
            raise AssertionError("the target's label was touched")

    def __getitem__(self, index):
        return self.Secret(super().__getitem__(index).image)


SMALL = {"crop": (16, 24), "patch_crop": (16, 16), "batch_size": 4, "min_pixels": 8}


def training_set(seed=0, target=None, with_crops=True, crop_is_target=False, **settings):
    target = Unlabelled(1) if target is None else target
    how = {"with_crops": with_crops, "crop_is_target": crop_is_target}
    return TrainingSet(Scenes(0), target, DataConfig(**(SMALL | settings)), seed=seed, **how)


def steps(count=3, seed=0, settings=None, **options):
    return list(batches(training_set(seed, **(settings or {})), iterations=count, **options))


def assert_same(found: list[Batch], expected: list[Batch]):
    assert len(found) == len(expected) > 0
    for a, b in zip(found, expected, strict=True):
        for name, x, y in zip(Batch._fields, a, b, strict=True):
            assert x.dtype == y.dtype and torch.equal(x, y), name


def test_a_batch_is_what_it_says_and_no_target_label_is_touched():
    batch = steps(1)[0]
    shapes = {name: tuple(value.shape) for name, value in batch._asdict().items()}
    assert shapes == {
        "iteration": (),
        "index": (4,),
        "source_image": (4, 3, 16, 24),
        "source_label": (4, 16, 24),
        "target_image": (4, 3, 16, 24),
        "target_valid": (4, 16, 24),
        "target_crops": (4, 2, 3, 16, 16),
        "boxes": (4, 2, 4),
        "flips": (4, 2),
    }
    floats, integers = torch.float32, torch.int64
    kinds = [integers, integers, floats, integers, floats, torch.bool, floats, integers, torch.bool]
    assert [value.dtype for value in batch] == kinds
    assert batch.index.tolist() == [0, 1, 2, 3] and batch.iteration.item() == 0
    for name in ("source_image", "target_image", "target_crops"):
        values = getattr(batch, name)
        assert values.min() >= 0 and 0.9 < values.max() <= 1 and values.is_contiguous(), name


def test_images_and_labels_travel_as_bytes():
    data = training_set()
    packed = data.collate([data[(0, slot)] for slot in range(4)])
    for name in ("source_image", "source_label", "target_image", "target_crops"):
        assert getattr(packed, name).dtype == torch.uint8, name
    assert_same([unpacked(packed, "cpu")], steps(1))
    there = steps(1, device="meta")[0]
    assert all(value.is_meta for value in there) and there.source_image.dtype == torch.float32


def test_image_and_label_are_cut_and_mirrored_together():
    for batch in steps(4):
        values = (batch.source_image[:, 0] * 255 / 10).round().long()
        assert torch.equal(values, batch.source_label)


def test_both_domains_are_mirrored_half_of_the_time():
    ramp = np.tile(np.arange(40, dtype=np.uint8), (24, 1))
    scene = Sample(np.stack([ramp] * 3, -1), np.zeros((24, 40), np.uint8), "ramp")

    class Ramps(Scenes):
        def __getitem__(self, index):
            return scene

    config = DataConfig(**SMALL, rare_class=False)
    data = TrainingSet(Ramps(), Ramps(), config, seed=0)
    found = list(batches(data, iterations=50))
    for name in ("source_image", "target_image"):
        images = torch.cat([getattr(batch, name) for batch in found])
        mirrored = images[:, 0, 0, 0] > images[:, 0, 0, -1]
        assert 0.35 < mirrored.float().mean() < 0.65, name


def test_crops_and_geometry_are_of_one_image():
    target = Scenes(1)
    for batch in steps(3, settings={"target": target}):
        for crops, boxes, flips in zip(batch.target_crops, batch.boxes, batch.flips, strict=True):
            views = [c.flip(-1) if f else c for c, f in zip(crops, flips, strict=True)]
            homes = []
            for view, (y0, x0, y1, x1) in zip(views, boxes.tolist(), strict=True):
                pixels = (view.movedim(0, -1) * 255).round().byte().numpy()
                homes.append(
                    [s.name for s in target.samples if (s.image[y0:y1, x0:x1] == pixels).all()]
                )
            assert len(homes[0]) == 1 and homes[0] == homes[1]


def test_the_first_crop_serves_as_target_image():
    """Its margins, given in pixels of the image at `target_size`, follow the crops' scale."""
    margins = {"pseudo_margins": (4, 2, 3, 0), "target_size": (24, 40)}
    wide = {"patch_crop": (48, 80), "crop": (24, 40), "patch_scale": (2.0, 2.0)}
    settings = {"crop_is_target": True, **margins, **wide, "patch_overlap": (0.9, 1.0)}
    for batch in steps(4, settings=settings):
        assert torch.equal(batch.target_image, batch.target_crops[:, 0])
        for valid, mirrored in zip(batch.target_valid, batch.flips[:, 0], strict=True):
            expected = torch.zeros(48, 80, dtype=torch.bool)
            expected[8:44, 6:] = True
            assert torch.equal(valid, expected.flip(1) if mirrored else expected)
    with pytest.raises(ValueError, match="crop_is_target"):
        training_set(with_crops=False, crop_is_target=True)


def test_without_crops_their_rows_are_none():
    batch = steps(1, settings={"with_crops": False})[0]
    assert batch.target_crops.shape == (0, 2, 3, 16, 16)
    assert batch.boxes.shape == (0, 2, 4) and batch.flips.shape == (0, 2)
    with_crops = steps(1)[0]
    for name in ("source_image", "source_label", "target_image"):
        assert torch.equal(getattr(batch, name), getattr(with_crops, name)), name


def test_a_resumed_run_sees_what_the_unbroken_one_would():
    whole = steps(6)
    assert_same(steps(6, start=4), whole[4:])
    assert steps(6, start=6) == []


@pytest.mark.parametrize("ranks", [2, 4])
def test_any_number_of_ranks_sees_the_same(ranks):
    whole = steps(3)
    shares = [
        steps(3, settings={"batch_size": 4 // ranks}, rank=rank, world_size=ranks)
        for rank in range(ranks)
    ]
    joined = []
    for step in zip(*shares, strict=True):
        names = Batch._fields[1:]
        parts = {name: torch.cat([getattr(batch, name) for batch in step]) for name in names}
        joined.append(Batch(iteration=step[0].iteration, **parts))
    assert_same(joined, whole)


def test_any_number_of_workers_loads_the_same():
    assert_same(steps(4, settings={"num_workers": 2}), steps(4))


def test_the_seed_and_the_iteration_matter():
    first, other = steps(2), steps(1, seed=1)
    assert not torch.equal(first[0].source_image, first[1].source_image)
    assert not torch.equal(first[0].source_image, other[0].source_image)
    assert not torch.equal(first[0].target_image, other[0].target_image)


def test_loading_leaves_torchs_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    steps(2)
    assert torch.equal(torch.get_rng_state(), before)


def test_rare_classes_come_more_often():
    class Rare(Scenes):
        def __init__(self):
            super().__init__()
            for index, (image, label, name) in enumerate(self.samples):
                label = np.zeros_like(label)
                label[:4] = 1
                if index == 7:
                    label[8:16, 8:16] = 9
                self.samples[index] = Sample(image, label, name)

    shares = {}
    for rare in (True, False):
        config = DataConfig(**SMALL, rare_class=rare, max_class_share=1.0)
        data = TrainingSet(Rare(), Unlabelled(1), config, seed=0)
        found = itertools.chain(*(b.source_label for b in batches(data, iterations=40)))
        shares[rare] = np.mean([bool((label == 9).any()) for label in found])
    # Temperature 0.01 draws the rarest of these three classes always, where its image is known.
    assert shares[True] > 0.9 and shares[False] < 0.2


def test_moves_whole():
    batch = steps(1)[0].to("meta")
    assert isinstance(batch, Batch) and all(value.is_meta for value in batch)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patch_crop": (20, 16)}, "data.patch_crop must be two positive multiples of data.stride"),
        ({"batch_size": 0}, "data.batch_size must be above 0"),
        ({"num_workers": -1}, "data.num_workers must be at least 0"),
        ({"patch_overlap": (0.5, 0.1)}, "data.patch_overlap must be a range"),
        ({"patch_scale": (0.0, 1.0)}, "data.patch_scale must be a range"),
        ({"max_class_share": 0.0}, "data.max_class_share must be a share"),
        ({"rare_class_temperature": 0.0}, "data.rare_class_temperature must be above 0"),
        ({"min_pixels": -1}, "data.min_pixels must be at least 0"),
        ({"crop": (0, 16)}, "data.crop must be two positive sizes"),
        ({"source_size": (16, 64)}, "data.source_size"),
        ({"target_size": (64, 100)}, "data.target_size"),
        ({"pseudo_margins": (0, -1, 0, 0)}, "data.pseudo_margins"),
        ({"source_root": "data/gta5"}, "data.source_root"),
        ({"target": "cityscapes"}, "data.target_root"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**settings)


def test_bad_calls_are_named():
    with pytest.raises(ValueError, match=r"rank must be in 0 \.\.\. 1; got 2"):
        steps(1, rank=2, world_size=2)
    with pytest.raises(ValueError, match="target must be at least one image"):
        TrainingSet(Scenes(), Scenes(count=0), DataConfig(), seed=0)
    told = r"data.crop must be positive and no larger than the image, .*, of image \d"
    with pytest.raises(ValueError, match=told):
        steps(1, settings={"crop": (64, 64)})


def test_pseudo_labels_of_the_images_margins_do_not_count():
    """The crop is the whole image, so that its margins are the image's; some are mirrored."""
    data = training_set(crop=(24, 40), pseudo_margins=(2, 5, 3, 0), with_crops=False)
    seen = set()
    for slot in range(20):
        valid = data[(0, slot)]["target_valid"]
        assert valid.sum() == (24 - 7) * (40 - 3)
        assert not valid[:2].any() and not valid[19:].any() and valid[2:19].any(1).all()
        seen.add("left" if not valid[:, :3].any() else "right")
    assert seen == {"left", "right"}


@pytest.mark.parametrize("margins", [(4, 30, 0, 0), (4, 20, 0, 0), (0, 0, 50, 3)])
def test_margins_that_leave_nothing_are_told(margins):
    """As HRDA's of 30 and 240 rows would on images made smaller to try things out."""
    data = training_set(crop=(24, 40), pseudo_margins=margins, with_crops=False)
    told = r"data\.pseudo_margins must be less than the image, \(24, 40\); got .*, of image"
    with pytest.raises(ValueError, match=told):
        data[(0, 0)]


def test_images_and_labels_are_resized_before_crops_are_cut():
    config = DataConfig(
        crop=(48, 80),
        patch_crop=(16, 16),
        rare_class=False,
        source_size=(48, 80),
        target_size=(96, 160),
    )
    source, target = Scenes(size=(96, 160)), Scenes(1, size=(24, 40))
    training_set = TrainingSet(source, target, config, seed=0)
    for slot in range(5):
        item = training_set[(0, slot)]
        assert item["source_image"].shape == (48, 80, 3)
        assert item["source_label"].shape == (48, 80)
        red, label = item["source_image"][..., 0], item["source_label"]
        # squares are two pixels wide now, and the image's are blurred
        assert np.corrcoef(red.ravel(), label.ravel())[0, 1] > 0.8
        assert item["target_image"].shape == (48, 80, 3)
        assert item["boxes"].max() <= 40, "crops are cut from the image as it is"


def test_images_of_other_proportions_than_the_recipes_are_not_stretched():
    """All of a source image, mirrored or not, is in a crop of its resized size."""
    config = DataConfig(
        crop=(24, 48), patch_crop=(16, 16), rare_class=False, source_size=(28, 48), target_size=None
    )
    source = Scenes(size=(48, 96))
    training_set = TrainingSet(source, Scenes(1, size=(24, 48)), config, seed=0)
    halves = [scene.label[1::2, 1::2] for scene in source.samples]
    label = training_set[(0, 0)]["source_label"]
    assert any((label == half).all() or (label == half[:, ::-1]).all() for half in halves)
