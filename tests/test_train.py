# SPDX-License-Identifier: Apache-2.0
import json
import sys

import pytest
import yaml

from pipa_fast import compare, evaluate, export, predict, train
from pipa_fast.data import loader
from pipa_fast.data.datasets import build_dataset
from pipa_fast.models import build_network
from pipa_fast.training import checkpoint
from pipa_fast.training.config import load
from tests.data.published import image_file, label_file, make

TINY = ["--iterations", "2", "--data.crop", "[32, 32]", "--data.patch_crop", "[32, 32]"]


pytestmark = pytest.mark.usefixtures("few_scenes")


def command_line(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["train", *words])
    return train.main()


def test_two_recipes_and_their_report(tmp_path, monkeypatch, capsys):
    here = ["--run.dir", str(tmp_path), *TINY]
    assert command_line(monkeypatch, "--config", "streets_source", *here) == 0
    source = tmp_path / "streets_source"
    words = ["--config", "streets_pipa", *here, "--run.baseline", str(source)]
    assert command_line(monkeypatch, *words) == 0
    report = tmp_path / "streets_pipa" / "report.html"
    assert str(report) in capsys.readouterr().out
    text = report.read_text()
    assert "source-only" in text and "teacher" in text
    results = json.loads((tmp_path / "streets_pipa" / "results.json").read_text())
    surroundings = {"images_per_step", "ranks", "device", "dtype", "pipa_fast", "torch"}
    assert results.keys() == {"miou", "iou", "recipe", "iteration", "seed", *surroundings}


def test_a_missing_baseline_is_told_before_training(tmp_path, monkeypatch, capsys):
    words = ["--config", "streets_source", "--run.dir", str(tmp_path), *TINY]
    assert command_line(monkeypatch, *words, "--run.baseline", str(tmp_path / "no")) == 2
    assert "run must be a folder with config.yaml" in capsys.readouterr().err
    assert not (tmp_path / "streets_source").exists()


def test_folders_are_told_of_before_weights_are_fetched_and_a_run_is_set_aside(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(loader, "build_dataset", build_dataset)  # not a few scenes of it
    for name in ("gta5", "cityscapes"):
        make(name, tmp_path / name)
    make("cityscapes", tmp_path / "cityscapes", "val")
    (tmp_path / "streets_source").mkdir()
    (tmp_path / "streets_source" / "results.json").write_text("{}")
    words = ["--config", "streets_source", "--run.dir", str(tmp_path), *TINY]
    words += ["--model.encoder", "mit_b0", "--model.weights", str(tmp_path / "no.pth")]
    words += ["--data.source", "gta5", "--data.source_root", str(tmp_path / "gta5")]
    words += ["--data.target", "cityscapes", "--data.target_root"]
    for folder, told in (
        ("no", "data.target_root must be the folder of cityscapes"),
        ("gta5", "data.target_root must be a folder with cityscapes's val images, leftImg8bit/val"),
        ("cityscapes", "data.rare_class needs"),
    ):
        assert command_line(monkeypatch, *words, str(tmp_path / folder)) == 2
        assert told in capsys.readouterr().err
    assert (tmp_path / "streets_source" / "results.json").exists()


def test_a_gpu_that_is_not_there_is_told_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    words = ["--config", "streets_source", "--run.dir", str(tmp_path), "--device", "cuda"]
    assert command_line(monkeypatch, *words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: device must be 'cpu' or 'auto'") and error.count("\n") == 1


def test_a_baseline_without_results_is_told_before_training(tmp_path, monkeypatch, capsys):
    baseline = tmp_path / "converted"
    baseline.mkdir()
    config = load({"recipe": "r"})
    checkpoint.write_settings(baseline, config)
    checkpoint.export(baseline, build_network(config.model))
    words = ["--config", "streets_source", "--run.dir", str(tmp_path), *TINY]
    assert command_line(monkeypatch, *words, "--run.baseline", str(baseline)) == 2
    assert "finished run, with results.json" in capsys.readouterr().err
    assert not (tmp_path / "streets_source").exists()


def test_before_training_is_not_shown_where_it_started_from_a_whole_network(tmp_path, monkeypatch):
    """A network drawn anew is none that it started from."""
    words = ["--config", "streets_source", "--run.dir", str(tmp_path), *TINY]
    assert command_line(monkeypatch, *words) == 0
    first = tmp_path / "streets_source"
    assert "before training" in (first / "report.html").read_text()
    again = ["--run.name", "second", "--model.start", str(first)]
    assert command_line(monkeypatch, *words, *again) == 0
    report = tmp_path / "second" / "report.html"
    assert "before training" not in report.read_text()
    report.unlink()
    assert evaluate.main(["--run", str(tmp_path / "second"), "--report"]) == 0
    assert "before training" not in report.read_text()


def test_classes_of_ones_own_go_from_labels_to_scores_report_and_legend(
    tmp_path, monkeypatch, capsys
):
    for split in ("train", "val"):
        for i in range(2):
            image_file(tmp_path / "data" / "images" / split / f"{i}.png", 90 * i, (64, 64))
            label_file(tmp_path / "data" / "labels" / split / f"{i}.png", [0, 1, 255], (64, 64))
    recipe = tmp_path / "roofs.yaml"
    own = {"source": "own", "target": "own", "classes": ["background", "slate roof"]}
    own |= dict.fromkeys(("source_root", "target_root"), str(tmp_path / "data"))
    own |= {"rare_class": False, "max_class_share": 1.0}
    settings = {"base": "streets_pipa", "data": own, "model": {"num_classes": 2}}
    recipe.write_text(yaml.safe_dump(settings))
    words = ["--config", str(recipe), "--run.dir", str(tmp_path / "runs"), *TINY]
    assert command_line(monkeypatch, *words) == 0
    run = tmp_path / "runs" / "roofs"
    assert json.loads((run / "results.json").read_text())["iou"].keys() == set(own["classes"])
    assert "slate roof" in (run / "report.html").read_text()
    assert evaluate.main(["--run", str(run)]) == 0
    assert "slate roof" in capsys.readouterr().out
    for word, value in (("--classes", "16"), ("--dataset", "gta5")):
        with pytest.raises(SystemExit):
            evaluate.main(["--run", str(run), word, value])
        assert f"{word} must be " in capsys.readouterr().err
    images = str(tmp_path / "data" / "images" / "val")
    painted = ["--run", str(run), "--out", str(tmp_path / "painted")]
    assert predict.main([images, *painted, "--legend", "--raw"]) == 0
    named = image_file(tmp_path / "berlin" / "berlin_000000_000019_leftImg8bit.png")
    with pytest.raises(SystemExit):
        predict.main([str(named), *painted, "--format", "cityscapes"])
    assert "this has its own" in capsys.readouterr().err
    assert compare.main([str(run), "--out", str(tmp_path / "page.html")]) == 0
    assert "slate roof" in (tmp_path / "page.html").read_text()
    assert export.main(["--run", str(run), "--out", str(tmp_path / "mine")]) == 0
    assert "slate roof" in (tmp_path / "mine" / "README.md").read_text()
