# SPDX-License-Identifier: Apache-2.0
from pathlib import PurePath

import numpy as np
import pytest
from PIL import Image

from pipa_fast.data.cityscapes import CITYSCAPES
from pipa_fast.evaluation.server import check_names, scene_of, write_label_ids

BERLIN = "berlin_000000_000019"


@pytest.mark.parametrize(
    ("stem", "scene"),
    [
        (BERLIN, BERLIN),
        (f"{BERLIN}_leftImg8bit", BERLIN),
        ("berlin_000000_0000190_leftImg8bit", None),
        ("berlin_00000_000019_leftImg8bit", None),
        ("000000_000019_leftImg8bit", None),
        ("a_berlin_000000_000019", None),
        ("GOPR0475_frame_000247_rgb_anon", None),
    ],
)
def test_scenes_are_read_off_the_name(stem, scene):
    assert scene_of(stem) == scene


def test_files_lie_in_one_folder_by_their_own_names(tmp_path):
    names = [f"test/berlin/{BERLIN}_leftImg8bit", "test/bonn/bonn_000001_000019_leftImg8bit"]
    paths = check_names(names, tmp_path)
    assert list(paths) == names
    assert [p.name for p in paths.values()] == [f"{n.rpartition('/')[2]}.png" for n in names]
    assert {p.parent for p in paths.values()} == {tmp_path}


def test_wrong_names_are_listed(tmp_path):
    names = [f"holiday_{i}" for i in range(7)]
    with pytest.raises(ValueError, match="7 do not: holiday_0, .*holiday_4 and 2 more$"):
        check_names([*names, BERLIN], tmp_path)


def test_one_scene_twice_is_refused(tmp_path):
    names = [f"a/{BERLIN}_leftImg8bit", f"b/{BERLIN}_rightImg8bit"]
    with pytest.raises(ValueError, match="a/berlin_.* and b/berlin_.* are of one scene"):
        check_names(names, tmp_path)


def test_what_else_lies_in_the_folder_must_not_pass_for_a_label(tmp_path):
    check_names([BERLIN], tmp_path)
    (tmp_path / f"{BERLIN}.png").write_bytes(b"")  # of an earlier time: written over
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "bonn_000001_000019.png").write_bytes(b"")  # of another scene
    check_names([BERLIN], tmp_path)
    (tmp_path / f"{BERLIN}_overlay.png").write_bytes(b"")
    with pytest.raises(ValueError, match="no other PNG of the same scenes.*000019_overlay.png"):
        check_names([BERLIN], tmp_path)


def test_a_full_folder_is_looked_through_once(tmp_path, monkeypatch):
    names = [f"berlin_{i:06d}_000019" for i in range(50)]
    for path in check_names(names, tmp_path).values():
        path.write_bytes(b"")
    compared, equal = [], PurePath.__eq__
    monkeypatch.setattr(PurePath, "__eq__", lambda a, b: compared.append(1) or equal(a, b))
    check_names(names, tmp_path)
    assert len(compared) <= len(names)


def test_label_ids_come_back_as_train_ids(tmp_path):
    train_ids = np.arange(19, dtype=np.uint8)[None].repeat(2, 0)
    write_label_ids(tmp_path / "a.png", train_ids)
    with Image.open(tmp_path / "a.png") as written:
        assert written.mode == "L"
        assert np.array_equal(CITYSCAPES.table()[np.asarray(written)], train_ids)
