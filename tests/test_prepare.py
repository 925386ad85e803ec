# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipa_fast import prepare
from pipa_fast.data import Streets
from pipa_fast.data.cityscapes import CITYSCAPES
from pipa_fast.data.labels import GTA5_PALETTE
from pipa_fast.data.streets import Split
from pipa_fast.prepare import main, prepare_streets


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_gta5_layout(tmp_path: Path) -> None:
    assert prepare_streets("gta5", tmp_path, count=2) == (4, 0)
    names = ("00001.png", "00002.png")
    assert files(tmp_path) == [f"images/{n}" for n in names] + [f"labels/{n}" for n in names]
    scenes = Streets("synthetic", "train")
    for name, scene in zip(names, scenes[:2], strict=True):
        assert np.array_equal(np.asarray(Image.open(tmp_path / "images" / name)), scene.image)
        label = Image.open(tmp_path / "labels" / name)
        assert label.mode == "P"
        assert np.array_equal(CITYSCAPES.table()[np.asarray(label)], scene.label)
        palette = np.array(label.getpalette()).reshape(-1, 3)
        assert np.array_equal(palette, GTA5_PALETTE[: len(palette)]) and len(palette) > 33


def test_cityscapes_layout(tmp_path: Path) -> None:
    assert prepare_streets("cityscapes", tmp_path, count=4) == (16, 0)
    written = files(tmp_path)
    assert "leftImg8bit/train/aachen/aachen_000001_000019_leftImg8bit.png" in written
    assert "gtFine/val/munster/munster_000000_000019_gtFine_labelIds.png" in written
    cities_of: dict[Split, tuple[str, ...]] = {
        "train": ("aachen", "bremen", "zurich"),
        "val": ("frankfurt", "munster"),
    }
    for split, cities in cities_of.items():
        for index, scene in enumerate(Streets("real", split)[:4]):
            city = cities[index % len(cities)]
            stem = f"{split}/{city}/{city}_{index // len(cities):06d}_000019"
            image = Image.open(tmp_path / f"leftImg8bit/{stem}_leftImg8bit.png")
            label = Image.open(tmp_path / f"gtFine/{stem}_gtFine_labelIds.png")
            assert image.mode == "RGB" and label.mode == "L"
            assert np.array_equal(np.asarray(image), scene.image)
            assert np.array_equal(CITYSCAPES.table()[np.asarray(label)], scene.label)
            assert np.asarray(label)[scene.label == 255].max() == 0  # unlabelled


def test_second_run_keeps_what_is_there(tmp_path: Path) -> None:
    prepare_streets("gta5", tmp_path, count=1)
    assert prepare_streets("gta5", tmp_path, count=2) == (2, 2)


def test_an_interrupted_run_leaves_no_torn_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def torn(image: Image.Image, path: Path, **_: object) -> None:
        path.write_bytes(b"torn")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Image.Image, "save", torn)
        prepare_streets("gta5", tmp_path, count=1)
    assert files(tmp_path) == []


def test_other_content_needs_overwrite(tmp_path: Path) -> None:
    prepare_streets("gta5", tmp_path, count=1)
    image = tmp_path / "images/00001.png"
    Image.new("RGB", (256, 128)).save(image)
    with pytest.raises(FileExistsError, match="--overwrite"):
        prepare_streets("gta5", tmp_path, count=1)
    assert prepare_streets("gta5", tmp_path, count=1, overwrite=True) == (2, 0)
    assert np.asarray(Image.open(image)).any()


def test_bad_arguments_name_themselves(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="layout must be one of gta5, cityscapes; got 'voc'"):
        prepare_streets("voc", tmp_path)
    for count in (0, 401):
        with pytest.raises(ValueError, match=f"count must be from 1 to 400; got {count}"):
            prepare_streets("gta5", tmp_path, count=count)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ValueError, match="out must be a folder"):
        prepare_streets("gta5", file)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["streets", "--layout", "gta5", "--out", str(tmp_path), "--count"]
    assert main([*arguments, "1"]) == 0
    assert "2 files written, 0 there already" in capsys.readouterr().out
    assert main([*arguments, "-3"]) == 2
    assert "count must be from 1 to 400" in capsys.readouterr().err


def test_a_wrong_option_points_to_the_datasets_own_help(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["streets", "--layout", "gta5", "--out", "x"], ["gta5", "--root", "x"]):
        with pytest.raises(SystemExit) as stop:
            main([*words, "--wrong"])
        assert stop.value.code == 2
        said = capsys.readouterr().err
        assert said.startswith("error: unrecognized arguments: --wrong. `")
        assert said.endswith(f"prepare {words[0]} --help` lists the options.\n")


def test_ctrl_c_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "_tracked", stopped)
    words = ["streets", "--layout", "gta5", "--out", str(tmp_path)]
    for more, does in (([], "goes on"), (["--overwrite"], "writes them anew")):
        assert main([*words, *more]) == 130
        kept = f"the files written below {tmp_path} are kept, and the same command {does}"
        assert capsys.readouterr().err == f"stopped; {kept}\n"
