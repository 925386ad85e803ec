# SPDX-License-Identifier: Apache-2.0
import json
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from pipa_fast import prepare
from pipa_fast.data.datasets import LAYOUTS, build_dataset
from pipa_fast.data.labels import GTA5_PALETTE
from pipa_fast.data.preparation import JOURNAL
from pipa_fast.data.preparation import prepare as prepare_dataset
from pipa_fast.data.statistics import PER_CLASS, PER_IMAGE, known_counts
from tests.data.published import image_file, label_file, make

WITH_IDS = ["gta5", "synthia", "cityscapes", "mapillary"]


def run(name, root, *words):
    return prepare.main([name, "--root", str(root), "--jobs", "1", *words])


def contents(root):
    return {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", WITH_IDS)
def test_labels_are_converted_and_classes_counted(tmp_path, name, capsys):
    root = make(name, tmp_path)
    assert run(name, root, "--subset") == 0
    assert "2 labels converted" in capsys.readouterr().out
    converted = sorted(root.rglob("*_labelTrainIds.png"))
    assert len(converted) == 2
    with Image.open(converted[0]) as label:
        assert (np.asarray(label) == np.tile(np.array([0, 13, 255]), 4)).all()
    counts = known_counts(build_dataset(name, "train", root))
    assert counts[:, [0, 13]].tolist() == [[32, 32], [32, 32]] and counts.sum() == 128
    per_class = json.loads((root / PER_CLASS).read_text())
    assert {k: [n for _, n in v] for k, v in per_class.items()} == {"0": [32, 32], "13": [32, 32]}


@pytest.mark.parametrize("name", sorted(set(LAYOUTS) - set(WITH_IDS)))
def test_labels_that_are_train_ids_are_left(tmp_path, name, capsys):
    split = "val" if name == "dark_zurich" else "train"
    root = make(name, tmp_path, split)
    before = contents(root)
    assert run(name, root, "--subset") == 0
    assert "0 labels converted" in capsys.readouterr().out
    assert before.items() <= contents(root).items()


def test_a_second_run_keeps_what_is_sound_and_mends_what_is_not(tmp_path, capsys):
    root = make("gta5", tmp_path)
    run("gta5", root, "--subset")
    broken = root / "labels" / "00001_labelTrainIds.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:20])
    capsys.readouterr()
    assert run("gta5", root, "--subset") == 0
    assert "1 labels converted" in capsys.readouterr().out
    assert broken.read_bytes() == whole


def test_a_label_that_was_replaced_is_converted_anew(tmp_path, capsys):
    root = make("gta5", tmp_path)
    run("gta5", root, "--subset")
    label, converted = (root / "labels" / f"00001{end}.png" for end in ("", "_labelTrainIds"))
    ids = np.full((8, 12), 7, np.uint8)  # road
    Image.fromarray(ids).save(label)
    before = converted.read_bytes()
    assert run("gta5", root, "--subset", "--check") == 1
    assert f"{converted} is not what {label} becomes" in "".join(
        capsys.readouterr().err.split("\n")
    )
    assert converted.read_bytes() == before
    assert run("gta5", root, "--subset") == 0
    assert "1 labels converted" in capsys.readouterr().out
    with Image.open(converted) as image:
        assert not np.asarray(image).any()


def test_workers_end_with_a_process_that_is_killed(tmp_path):
    root = make("gta5", tmp_path)
    code = f"""
import os, signal
from pipa_fast.data.datasets import LAYOUTS
from pipa_fast.data.preparation import prepare
def kill(seen, *_):
    next(seen)
    os.kill(os.getpid(), signal.SIGKILL)
prepare(LAYOUTS["gta5"], {str(root)!r}, subset=True, jobs=2, progress=kill)
"""
    # which waits for all that hold the other end of its standard output
    killed = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, timeout=60)
    assert killed.returncode == -signal.SIGKILL


def test_ctrl_c_is_told_in_one_line_and_the_same_command_goes_on(tmp_path, capsys):
    """A terminal sends it to the workers too, which must say nothing."""
    root = make("gta5", tmp_path)
    code = f"""
import os, signal, sys
from pipa_fast import prepare
signal.signal(signal.SIGINT, signal.default_int_handler)  # a script in the background ignores it
def stop(seen, *_):
    yield next(seen)
    os.killpg(0, signal.SIGINT)
    yield from seen
prepare._tracked = stop
sys.exit(prepare.main(["gta5", "--root", {str(root)!r}, "--subset", "--jobs", "2", *sys.argv[1:]]))
"""
    nothing = "nothing is kept, and the same command begins anew"
    sound = f"what was found sound is in {root / JOURNAL}, and the same command goes on"
    for said, *words in ((nothing, "--check"), (sound,)):
        whole = [sys.executable, "-c", code, *words]
        done = subprocess.run(whole, start_new_session=True, capture_output=True, timeout=60)
        assert (done.returncode, done.stderr.decode()) == (130, f"stopped; {said}\n")
    assert run("gta5", root, "--subset") == 0
    assert "1 images had been read before" in capsys.readouterr().out


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path):
    root = make("gta5", tmp_path)
    layout, read = LAYOUTS["gta5"], []

    def stop(seen, *_):
        yield next(seen)
        raise KeyboardInterrupt

    def note(seen, _, count):
        read.append(count)
        return seen

    with pytest.raises(KeyboardInterrupt):
        prepare_dataset(layout, root, subset=True, progress=stop)
    with (root / JOURNAL).open("a") as file:
        file.write('["torn')
    other = prepare_dataset(layout, root, subset=True, progress=note)
    assert (read, other.resumed, other.problems) == ([1], 1, [])
    first = {name: (root / name).read_text() for name in (PER_CLASS, PER_IMAGE)}
    whole = prepare_dataset(layout, root, subset=True, progress=note)
    assert (read, whole.resumed) == ([1, 2], 0)
    assert first == {name: (root / name).read_text() for name in (PER_CLASS, PER_IMAGE)}


def test_only_what_was_wrong_or_replaced_is_read_again(tmp_path):
    root = make("gta5", tmp_path)
    layout = LAYOUTS["gta5"]
    labels = sorted((root / "labels").iterdir())
    image = sorted((root / "images").iterdir())[0]
    whole = image.read_bytes()
    image.write_bytes(b"")
    assert len(prepare_dataset(layout, root, subset=True).problems) == 1
    assert prepare_dataset(layout, root, subset=True, check=True).resumed == 0
    image.write_bytes(whole)
    converted = labels[1].with_name(f"{labels[1].stem}_labelTrainIds.png")
    converted.write_bytes(converted.read_bytes()[:20])
    again = prepare_dataset(layout, root, subset=True)
    assert (again.resumed, again.written, again.problems) == (0, 1, [])
    image.write_bytes(b"")
    assert len(prepare_dataset(layout, root, subset=True).problems) == 1
    assert prepare_dataset(layout, root).resumed == 0  # sizes count without subset: other terms


def test_check_writes_nothing(tmp_path):
    root = make("gta5", tmp_path)
    before = contents(root)
    assert run("gta5", root, "--check", "--subset") == 0
    assert contents(root) == before


def test_every_file_that_is_wrong_is_listed_and_nothing_counted(tmp_path, capsys):
    root = make("gta5", tmp_path)
    for i in range(2, 6):
        image_file(root / "images" / f"0000{i}.png")
    label_file(root / "labels" / "00002.png", [7, 77])
    label_file(root / "labels" / "00003.png", [7], (8, 10))
    (root / "labels" / "00004.png").write_bytes(b"")
    assert run("gta5", root) == 1
    said = capsys.readouterr().err
    for part in (
        "6 images, not the published 24966",
        "00000.png is 8 x 12, not 1052 x 1914 or 1046 x 1914",
        "00002.png holds label ids [77]",
        "00003.png is (8, 10)",
        "00004.png cannot be read",
        "00005.png is missing",
    ):
        assert part in said, part
    assert not (root / PER_IMAGE).exists()


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_images_that_are_missing_are_listed_by_their_labels(name, tmp_path, capsys):
    """A whole city may be: no file that is there has its name."""
    root = make(name, make(name, tmp_path), "val")
    if name in ("acdc", "dark_zurich"):  # what is read of these comes converted beside the ids
        for label in [*root.rglob("*_labelTrainIds.png")]:
            label_file(label.with_name(label.name.replace("TrainIds", "Ids")), [7])
    images = [
        pair.image for split in LAYOUTS[name].splits for pair in LAYOUTS[name].pairs(root, split)
    ]
    labelled = [
        pair.label for split in LAYOUTS[name].splits for pair in LAYOUTS[name].pairs(root, split)
    ]
    for image in images[:-1]:
        image.unlink()
    assert run(name, root, "--check") == 1
    said = capsys.readouterr().err
    for label in labelled[:-1]:
        assert label is None or f"the image of {label} is missing" in said
    assert f"the image of {labelled[-1]}" not in said
    run(name, root, "--subset", "--check")
    assert "the image of" not in capsys.readouterr().err


def test_no_statistics_are_written_where_another_split_is_broken(tmp_path, capsys):
    root = make("cityscapes", make("cityscapes", tmp_path), "val")
    next(root.glob("gtFine/val/*/*.png")).write_bytes(b"")
    assert run("cityscapes", root, "--subset") == 1
    assert "no statistics written\n" in capsys.readouterr().err
    assert not (root / PER_IMAGE).exists()
    assert run("cityscapes", root) == 1
    assert "; --subset accepts other numbers and sizes" in capsys.readouterr().err


def test_a_folder_that_is_none_is_told(tmp_path, capsys):
    assert run("gta5", tmp_path / "no") == 2
    assert "root must be the folder of gta5" in capsys.readouterr().err
    assert run("gta5", tmp_path) == 2
    assert "gta5's images, images/*.png; got" in capsys.readouterr().err


def test_a_label_whose_palette_is_in_another_order_is_told(tmp_path, capsys):
    """Its ids are some that the dataset has, and of other classes than its colours show."""
    root = make("gta5", tmp_path)
    path = root / "labels" / "00000.png"
    with Image.open(path) as image:
        ids = np.array(image)
    published = Image.fromarray(ids)
    published.putpalette(GTA5_PALETTE.tobytes())
    published.save(path)
    assert run("gta5", root, "--subset", "--check") == 0
    colours = np.roll(GTA5_PALETTE, 1, axis=0)
    renumbered = Image.fromarray(ids)
    renumbered.putpalette(colours.tobytes())
    renumbered.save(path)
    assert run("gta5", root, "--subset") == 1
    said = capsys.readouterr().err
    assert "00000.png has the colour (81, 0, 81) for label id 7 in its palette" in said
    assert "1 problems; no statistics written" in said
    assert not (root / "labels" / "00000_labelTrainIds.png").exists()  # it would be kept


@pytest.mark.parametrize("number", [15188, 17705, 20801, 20860])
def test_labels_of_gta5_that_have_another_size_are_stretched(tmp_path, number):
    root = make("gta5", tmp_path)
    image_file(root / "images" / f"{number}.png")
    label_file(root / "labels" / f"{number}.png", [7, 26], (4, 6))
    assert run("gta5", root, "--subset") == 0
    sample = build_dataset("gta5", "train", root)[2]
    assert sample.label.shape == (8, 12) and set(np.unique(sample.label)) == {0, 13}


def test_the_sizes_of_gta5_are_those_of_the_download(tmp_path, capsys):
    for number, image, label in (
        (1, (1052, 1914), (1052, 1914)),
        (2, (1046, 1914), (1046, 1914)),
        (15188, (526, 957), (1052, 1914)),
        (20830, (1046, 1914), (1052, 1914)),
    ):
        image_file(tmp_path / "images" / f"{number:05d}.png", size=image)
        label_file(tmp_path / "labels" / f"{number:05d}.png", [7], label)
    assert run("gta5", tmp_path, "--check") == 1
    assert "not the published 24966\n1 problems" in capsys.readouterr().err


def test_training_images_without_any_label_may_be_a_targets(tmp_path, capsys):
    root = make("cityscapes", make("cityscapes", tmp_path), "val")
    labels = sorted(root.glob("gtFine/train/*/*.png"))
    labels[0].unlink()
    assert run("cityscapes", root, "--subset") == 1
    assert f"{labels[0]} is missing" in capsys.readouterr().err
    labels[1].unlink()
    labels[1].with_name(labels[1].name.replace("_labelIds", "_labelTrainIds")).unlink()
    assert run("cityscapes", root, "--subset") == 0
    assert "no training image has a label" in capsys.readouterr().out
    next(root.glob("leftImg8bit/train/*/*.png")).write_bytes(b"")
    assert run("cityscapes", root, "--subset") == 1
    assert "cannot be read as an image" in capsys.readouterr().err


def test_labels_of_own_classes_are_checked_and_absent_ones_named(tmp_path, capsys):
    root = make("own", tmp_path)
    label_file(root / "labels" / "train" / "o0.png", [0, 1, 255])
    label_file(root / "labels" / "train" / "o1.png", [1, 2])
    assert run("own", root, "--classes", "background", "roof") == 1
    assert "o1.png holds label ids [2]" in (said := capsys.readouterr().err)
    assert "known are 0 to 1 and 255" in said
    assert run("own", root, "--classes", "background", "roof", "tree", "car") == 0
    assert "no pixel is car in the training labels" in capsys.readouterr().out
    assert run("own", root, "--classes", "roof", "roof") == 2
    assert "classes must be 2 to 254 different names" in capsys.readouterr().err
    classes = ("background", "roof", "tree", "car")
    counts = known_counts(build_dataset("own", "train", root, classes=classes))
    assert counts[:, :4].tolist() == [[32, 32, 0, 0], [0, 48, 48, 0]]
