# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import numpy as np
import pytest

from pipa_fast.data.datasets import LAYOUTS, build_dataset
from pipa_fast.data.folder import without_image
from pipa_fast.data.labels import NUM_CLASSES
from pipa_fast.data.loader import DataConfig, TrainingSet
from pipa_fast.prepare import prepare_streets
from tests.data.published import image_file, label_file, make

COLUMNS = np.tile(np.array([0, 13, 255], np.uint8), 4)


@pytest.mark.parametrize("name", sorted(LAYOUTS))
@pytest.mark.parametrize("split", ["train", "val"])
def test_every_layout_is_read_as_train_ids(tmp_path, name, split):
    if split not in LAYOUTS[name].splits:
        with pytest.raises(ValueError, match="split"):
            build_dataset(name, split, make(name, tmp_path, split))
        return
    dataset = build_dataset(name, split, make(name, tmp_path, split))
    assert len(dataset) == 2
    assert np.abs(dataset.image(1).astype(int) - 101).max() <= 2  # some are JPEG
    if name == "dark_zurich" and split == "train":
        with pytest.raises(ValueError, match="has no label"):
            dataset.label(0)
        return
    for sample in dataset:
        assert sample.image.shape == (8, 12, 3) and sample.label.dtype == np.uint8
        assert (sample.label == COLUMNS).all()


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_the_tables_reach_every_class_and_no_id_twice(name):
    layout = LAYOUTS[name]
    assert set(layout.ids.values()) == set(range(NUM_CLASSES))
    assert not layout.ids.keys() & layout.unscored
    assert set(layout.eval_classes) <= set(range(NUM_CLASSES))


def test_the_conversion_is_read_where_there_is_one(tmp_path):
    make("gta5", tmp_path)
    label_file(tmp_path / "labels" / "00000_labelTrainIds.png", [5])
    dataset = build_dataset("gta5", "train", tmp_path)
    assert len(dataset) == 2
    assert (dataset.label(0) == 5).all() and (dataset.label(1) == COLUMNS).all()


def test_reference_images_of_acdc_are_left_out(tmp_path):
    make("acdc", tmp_path)
    image_file(tmp_path / "rgb_anon/fog/train_ref/GOPR1/GOPR1_9_rgb_anon.png")
    assert len(build_dataset("acdc", "train", tmp_path)) == 2


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_attributes_that_macos_keeps_beside_a_file_are_no_image(tmp_path, name):
    make(name, tmp_path)
    for path in [p for p in tmp_path.rglob("*") if p.is_file()]:
        path.with_name(f"._{path.name}").write_bytes(b"attributes")
    assert len(build_dataset(name, "train", tmp_path)) == 2
    layout = LAYOUTS[name]
    assert without_image(layout, tmp_path, "train", layout.pairs(tmp_path, "train")) == []


def test_no_label_is_looked_for_where_none_is_needed(tmp_path, monkeypatch):
    make("cityscapes", tmp_path)
    monkeypatch.setattr(Path, "is_file", lambda path: pytest.fail(f"looked for {path}"))
    assert len(build_dataset("cityscapes", "train", tmp_path, labelled=False)) == 2


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("missing", "have none"),
        ("other size", "00000"),
        ("unknown id", "77"),
        ("colours", "00000"),
    ],
)
def test_what_is_wrong_with_a_label_names_it(tmp_path, kind, named):
    """What no image or label can be read from is in tests/faults/test_images.py."""
    label = make("gta5", tmp_path) / "labels" / "00000.png"
    if kind == "missing":
        label.unlink()
    elif kind == "other size":
        label_file(label, [7], (8, 10))
    elif kind == "unknown id":
        label_file(label, [7, 77])
    else:
        image_file(label)
    with pytest.raises(ValueError, match=named):
        _ = build_dataset("gta5", "train", tmp_path)[0]


def test_folders_that_hold_nothing_are_told(tmp_path):
    for root, message in (
        (tmp_path, r"gta5.s train images, images/\*.png; got"),
        (tmp_path / "no", "folder of gta5"),
    ):
        with pytest.raises(ValueError, match=message):
            build_dataset("gta5", "train", root)
    with pytest.raises(ValueError, match="root must be the folder of gta5"):
        build_dataset("gta5", "train")
    with pytest.raises(ValueError, match="root must be null for streets_real"):
        build_dataset("streets_real", "train", tmp_path)


def test_training_opens_no_label_of_the_target(tmp_path):
    source, target = make("gta5", tmp_path / "gta5"), make("cityscapes", tmp_path / "cityscapes")
    config = DataConfig(
        source="gta5",
        target="cityscapes",
        source_root=str(source),
        target_root=str(target),
        crop=(8, 8),
        patch_crop=(8, 8),
        rare_class=False,
    )
    first, second = target.glob("gtFine/**/*.png")
    first.write_bytes(b"no label")
    second.unlink()
    with pytest.raises(ValueError, match="1 of 2 have none"):
        build_dataset("cityscapes", "train", target)
    datasets = [
        build_dataset("gta5", "train", source),
        build_dataset("cityscapes", "train", target, labelled=False),
    ]
    training_set = TrainingSet(*datasets, config, seed=0)
    items = [training_set[(i, 0)] for i in range(4)]
    assert all(item["source_label"].shape == (8, 8) for item in items)
    for index in range(2):
        with pytest.raises(ValueError, match=r"cannot be read|has no label"):
            datasets[1].label(index)


@pytest.mark.parametrize("layout", ["gta5", "cityscapes"])
def test_streets_in_a_published_layout_are_the_streets(tmp_path, layout):
    prepare_streets(layout, tmp_path, count=2)
    style = "synthetic" if layout == "gta5" else "real"
    embedded = build_dataset(f"streets_{style}", "train")
    read = build_dataset(layout, "train", tmp_path)
    assert len(read) == 2
    for index in range(2):
        assert np.array_equal(read[index].image, embedded[index].image)
        assert np.array_equal(read[index].label, embedded[index].label)
