# SPDX-License-Identifier: Apache-2.0
import numpy as np
from PIL import Image

from pipa_fast.data import labels
from pipa_fast.data.cityscapes import CITYSCAPES


def test_tables_have_cityscapes_sizes() -> None:
    assert len(labels.CLASSES) == len(set(labels.CLASSES)) == 19
    assert labels.PALETTE.shape == (19, 3) and labels.PALETTE.dtype == np.uint8
    assert len({tuple(colour) for colour in labels.PALETTE.tolist()}) == 19
    assert len(labels.SCORED_LABEL_IDS) + len(labels.UNSCORED_LABEL_IDS) == 34


def test_well_known_entries() -> None:
    by_name = dict(zip(labels.CLASSES, range(19), strict=True))
    expected = {"road": (7, 0), "sky": (23, 10), "person": (24, 11), "bicycle": (33, 18)}
    for name, (label_id, train_id) in expected.items():
        assert by_name[name] == train_id
        assert labels.SCORED_LABEL_IDS[label_id] == train_id
    assert tuple(labels.PALETTE[by_name["car"]]) == (0, 0, 142)
    assert tuple(labels.GTA5_PALETTE[26]) == (0, 0, 142)


def test_unscored_label_ids_are_ignored() -> None:
    unscored = [0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30]
    assert sorted(labels.UNSCORED_LABEL_IDS) == unscored
    assert np.flatnonzero(CITYSCAPES.table() == 255).tolist() == unscored


def test_ids_round_trip() -> None:
    train_ids = np.array([*range(19), 255], np.uint8)
    label_ids = labels.to_label_ids(train_ids)
    assert label_ids[-1] == 0, "unlabelled"
    assert np.array_equal(CITYSCAPES.table()[label_ids], train_ids)


def test_gta5_palette_paints_the_train_palette() -> None:
    train_ids = np.arange(19, dtype=np.uint8)[None]
    image = Image.fromarray(labels.to_label_ids(train_ids))
    image.putpalette(labels.GTA5_PALETTE.tobytes())
    assert np.array_equal(np.asarray(image.convert("RGB"))[0], labels.PALETTE)
