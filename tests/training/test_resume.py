# SPDX-License-Identifier: Apache-2.0
"""What may be another when a run goes on, and what may not."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipa_fast.data.statistics import PER_IMAGE
from pipa_fast.training import checkpoint
from pipa_fast.training.config import read_settings
from pipa_fast.training.trainer import Interrupted
from tests.training.test_trainer import trainer_for

GO_ON = {"run": {"resume": "auto"}}
FEATURES = {"adaptation": {"features": {"weight": 0.1}}}


def dataset(root: Path) -> Path:
    """Write three training and two validation images of roads, buildings and cars."""
    draw = np.random.default_rng(0)
    records = []
    for split, count in (("train", 3), ("val", 2)):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for i in range(count):
            ids = np.kron(draw.choice([0, 2, 13], (5, 6)), np.ones((8, 8))).astype(np.uint8)
            Image.fromarray(ids).save(root / f"labels/{split}/{i}.png")
            pixels = draw.integers(0, 255, (*ids.shape, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(root / f"images/{split}/{i}.png")
            counts = {str(c): int((ids == c).sum()) for c in np.unique(ids)}
            records.append({**counts, "file": f"{i}.png"})
    (root / PER_IMAGE).write_text(json.dumps(records[:3]))
    return root


def on(root: Path, **data):
    """Settings of a run on a dataset's folder."""
    places = {"source": "own", "target": "own", "source_root": str(root), "target_root": str(root)}
    return {"data": {**places, "min_pixels": 1, **data}}


def merged(*parts: dict) -> dict:
    found: dict = {}
    for part in parts:
        for key, value in part.items():
            found[key] = {**found.get(key, {}), **value}
    return found


def stopped(folder: Path, *parts: dict):
    trainer = trainer_for(folder, "streets_source", **merged({"run": {"stop_after": 3}}, *parts))
    with pytest.raises(Interrupted):
        trainer.run()
    return trainer


def gone_on(folder: Path, *parts: dict):
    trainer = trainer_for(folder, "streets_source", **merged(GO_ON, *parts))
    trainer.run()
    return trainer


def newest(run: Path) -> dict:
    state = checkpoint.load_newest(run)
    assert state is not None
    return state


@pytest.fixture
def root(tmp_path):
    return dataset(tmp_path / "data")


def test_a_run_goes_on_where_its_data_have_moved_to(tmp_path, root, capsys):
    whole = trainer_for(tmp_path / "whole", "streets_source", **on(root))
    whole.run()
    stopped(tmp_path, on(root))
    moved = root.rename(tmp_path / "node")
    capsys.readouterr()
    again = gone_on(tmp_path, on(moved))
    said = capsys.readouterr().out
    assert f"data.source_root: '{root}', now '{moved}'" in said and "data.target_root" in said
    ours, expected = (t.run_dir / checkpoint.EXPORTED for t in (again, whole))
    assert ours.read_bytes() == expected.read_bytes()
    assert read_settings(again.run_dir / "config.yaml").data.source_root == str(moved)


def test_how_scores_are_taken_may_change_and_is_told(tmp_path, root, capsys):
    """As after an evaluation that memory did not suffice for."""
    stopped(tmp_path, on(root))
    again = gone_on(tmp_path, on(root), {"evaluation": {"crop": [24, 24], "flip": True}})
    said = capsys.readouterr().out
    assert "evaluation.crop: None, now [24, 24]; evaluation.flip: False, now True" in said
    assert again.iteration == 6


def rename(root: Path) -> str:
    for kind in ("images", "labels"):
        (root / kind / "train/0.png").rename(root / kind / "train/00.png")
    return r"source: 3 images, names \w{12}, now 3 images, names \w{12}; target: 3 images"


def remove(root: Path) -> str:
    (root / "images/train/2.png").unlink()
    return r"source: 3 images, .*, now 2 images, names \w{12}; target: 3 images"


def recount(root: Path) -> str:
    records = json.loads((root / PER_IMAGE).read_text())
    records[1] = {"13": 999, "file": "1.png"}
    (root / PER_IMAGE).write_text(json.dumps(records))
    return r"\(class counts: \w{12}, now \w{12}\)"


@pytest.mark.parametrize("change", [rename, remove, recount])
def test_other_images_are_refused_unless_they_are_meant(tmp_path, root, capsys, change):
    rare = {"rare_class": change is recount}
    stopped(tmp_path, on(root, **rare))
    message = change(root)
    with pytest.raises(ValueError, match=f"holds a run of other images.*{message}"):
        gone_on(tmp_path, on(root, **rare))
    capsys.readouterr()
    gone_on(tmp_path, on(root, **rare), {"run": {"resume": "auto", "other_images": True}})
    assert "goes on with other images (" in capsys.readouterr().out


def test_other_validation_images_are_told(tmp_path, root, capsys):
    stopped(tmp_path, on(root))
    (root / "images/val/1.png").unlink()
    gone_on(tmp_path, on(root))
    assert "scores are of other validation images (2 images, names" in capsys.readouterr().out


def test_a_checkpoint_without_names_of_images_goes_on_and_says_so(tmp_path, root, capsys):
    run = stopped(tmp_path, on(root)).run_dir
    state = newest(run)
    del state["inputs"]
    checkpoint.save(run, state, 3)
    moved = root.rename(tmp_path / "node")
    gone_on(tmp_path, on(moved))
    assert "whether these are the same is not checked" in capsys.readouterr().out


@pytest.fixture
def network(tmp_path, few_scenes):
    """The folder of a run to start from."""
    trainer = trainer_for(tmp_path, "streets_source", iterations=1, run={"name": "first"})
    trainer.run()
    return trainer.run_dir


def begun_with(folder: Path | None) -> dict:
    return {"model": {"start": None if folder is None else str(folder)}}


def test_what_a_run_started_from_need_not_be_there_again(tmp_path, network, capsys):
    run = stopped(tmp_path, begun_with(network)).run_dir
    shutil.rmtree(network)
    again = gone_on(tmp_path, begun_with(None))
    assert f"model.start: '{network}', now None" in capsys.readouterr().out
    # what it did start from stays on record: else a report would draw another first network
    assert read_settings(run / "config.yaml").model.start == str(network)
    assert checkpoint.before_training(again.config) is None
    state = newest(run)
    assert state["inputs"]["first encoder"] and state["config"]["model"]["start"] == str(network)


def test_the_network_that_features_keep_near_must_be_the_same(tmp_path, network):
    stopped(tmp_path, begun_with(network), FEATURES)
    other = shutil.copytree(network, tmp_path / "other")
    built, _ = checkpoint.load_run(other)
    with torch.no_grad():
        next(built.encoder.parameters()).add_(1e-3)
    checkpoint.export(other, built)
    for wrong in (other, None):
        message = "must bring that again; got another .SHA-256 .*, now"
        with pytest.raises(ValueError, match=message):
            gone_on(tmp_path, begun_with(wrong), FEATURES)
    moved = network.rename(tmp_path / "moved")
    again = gone_on(tmp_path, begun_with(moved), FEATURES)
    assert again.iteration == 6
    assert read_settings(again.run_dir / "config.yaml").model.start == str(moved)


def test_a_checkpoint_that_does_not_know_its_first_network_keeps_it_by_name(tmp_path, network):
    run = stopped(tmp_path, begun_with(network), FEATURES).run_dir
    state = newest(run)
    del state["inputs"]
    checkpoint.save(run, state, 3)
    moved = shutil.copytree(network, tmp_path / "moved")
    with pytest.raises(ValueError, match="holds a run of other settings .model.start"):
        gone_on(tmp_path, begun_with(moved), FEATURES)
    gone_on(tmp_path, begun_with(network), FEATURES)


def test_weights_that_are_gone_leave_the_first_network_out_of_the_report(tmp_path, caplog):
    config = trainer_for(tmp_path, "streets_source").config
    config.model.encoder, config.model.weights = "mit_b0", str(tmp_path / "gone.pth")
    assert checkpoint.before_training(config) is None
    assert "the network before training is not shown" in caplog.text
