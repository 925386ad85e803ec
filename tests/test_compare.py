# SPDX-License-Identifier: Apache-2.0
"""Runs side by side: what is one group, and what the page shows."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from pipa_fast import compare
from pipa_fast.compare import main
from pipa_fast.evaluation.comparison import grouped
from pipa_fast.evaluation.comparison_page import Pictures, page
from pipa_fast.evaluation.runs import read_run, read_runs
from tests.evaluation.test_report import check
from tests.training.test_trainer import trainer_for


@pytest.fixture
def seeds(make_run):
    """Three runs of one recipe, of which one has another learning rate, and one of another."""

    def make(name, miou, seed, **config):
        folder = make_run(name, miou, **config)
        settings = (folder / "config.yaml").read_text()
        settings = settings.replace("seed: 3", f"seed: {seed}")
        (folder / "config.yaml").write_text(re.sub("recipe: .*", "recipe: pipa", settings))
        results = (folder / "results.json").read_text()
        results = results.replace('"seed": 3', f'"seed": {seed}')
        (folder / "results.json").write_text(results.replace(f'"{name}"', '"pipa"'))
        return folder

    return [
        make("pipa_seed0", 40.0, 0),
        make("pipa_seed1", 44.0, 1),
        make("pipa_lr", 42.0, 0, optimizer={"lr": 1e-3}),
        make_run("source <i>", 30.0),
    ]


def test_runs_that_differ_in_their_seed_alone_are_one_group(seeds):
    groups = grouped([read_run(path) for path in seeds])
    assert [(g.name, len(g.runs)) for g in groups] == [
        ("pipa", 2),
        ("pipa_lr", 1),
        ("source <i>", 1),
    ]
    assert groups[0].miou() == (42.0, pytest.approx(np.sqrt(8)))
    assert groups[0].iou("road") == (62.0, pytest.approx(np.sqrt(8)))
    assert groups[1].miou() == (42.0, 0.0) and groups[1].iou("pole") is None


def test_means_over_seeds_are_printed_with_their_spread_and_number(seeds, capsys):
    assert main([str(path) for path in seeds]) == 0
    out = capsys.readouterr().out
    table = out[out.index("over seeds") :]
    assert re.search(r"n = 2 .*n = 1 .*n = 1", table)
    assert re.search(r"road +│ 62\.0 ± 2\.8 │ +62\.0 │", table)
    assert re.search(r"mIoU +│ 42\.0 ± 2\.8 │ +42\.0 │", table)
    assert main([str(path) for path in seeds[1:]]) == 0
    assert "over seeds" not in capsys.readouterr().out


HOW = {"image_size": None, "crop": [64, 64], "stride": [32, 32], "flip": False, "precision": "fp32"}


@pytest.fixture
def sides(make_run):
    """A run that was trained and one that was converted, of the same settings."""
    evaluation = {"size": None, "crop": [64, 64], "stride": None, "flip": False, "classes": "19"}
    config = {"data": {"target": "cityscapes"}, "precision": "bf16"}
    trained = make_run("trained", 40.0, evaluation=evaluation | {"stride": [32, 32]}, **config)
    release = make_run("release", 0.0, evaluation=evaluation, **config)
    (release / "config.yaml").write_text((trained / "config.yaml").read_text())
    for name in ("results.json", "history.jsonl"):
        (release / name).unlink()
    return trained, release


def evaluated(release: Path, name: str, age: float, **changes) -> None:
    """Write an evaluation of `age` [s]."""
    record = {"miou": 50.0, "iou": {"road": 50.0}, "recipe": "trained", "seed": 3, "split": "val"}
    record |= {"dataset": "cityscapes", "classes": "19", "checkpoint": None} | HOW | changes
    path = release / f"evaluation_{name}.json"
    path.write_text(json.dumps(record))
    os.utime(path, (1e9 - age, 1e9 - age))


def test_a_converted_run_has_the_scores_that_evaluate_wrote(sides, capsys, tmp_path):
    trained, release = sides
    evaluated(release, "cityscapes_val", 9, miou=75.6)
    evaluated(release, "acdc_val", 5, dataset="acdc", miou=20.0)
    evaluated(release, "other_weights", 1, checkpoint="x.pt", miou=30.0)
    out = tmp_path / "page.html"
    assert main([str(trained), str(release), "--images", "0", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "75.6" in printed and "+35.6" in printed and "by evaluate, seed 3" in printed
    how = (
        "cityscapes val, 19 classes, images at their own size, in windows of 64 x 64, 32 x 32 apart"
    )
    assert f"trained: results.json, {how}, bf16" in printed
    line = f"release: evaluation_cityscapes_val.json, {how}, fp32"
    assert line in printed and line in out.read_text() and "by evaluate" in out.read_text()
    assert "over seeds" not in printed, "a release is no seed of the run beside it"


@pytest.mark.parametrize("trained_too", [True, False])
def test_scores_of_one_protocol_are_taken_before_newer_ones(sides, make_run, trained_too):
    trained, release = sides
    evaluated(release, "whole", 1, crop=None, stride=None)
    evaluated(release, "flipped", 5, flip=True)
    evaluated(release, "plain", 9)
    first = trained if trained_too else release
    assert [run.scored for run in read_runs([first, release])][1] == (
        "evaluation_plain.json" if trained_too else "evaluation_whole.json"
    )


def test_runs_that_are_scored_in_other_ways_say_so(make_run, capsys):
    runs = []
    for name, size in (("small", [8, 16]), ("large", None)):
        config = {"data": {"target": "cityscapes"}, "evaluation": {"size": size, "crop": None}}
        runs.append(str(make_run(name, 40.0, **config)))
    assert main(runs) == 0
    out = capsys.readouterr().out
    assert "small: results.json, cityscapes val, all classes, images fitted into 8 x 16" in out
    assert "large: results.json, cityscapes val, all classes, images at their own size" in out
    assert main([runs[0], runs[0]]) == 0
    assert "results.json" not in capsys.readouterr().out


def test_scores_on_other_images_are_not_put_side_by_side(sides, capsys):
    trained, release = sides
    for dataset, said in ((None, "or of one that evaluate scored"), ("acdc", "on the same images")):
        if dataset:
            evaluated(release, "acdc_val", 0, dataset=dataset)
        with pytest.raises(SystemExit) as stop:
            main([str(trained), str(release)])
        error = " ".join(capsys.readouterr().err.split())
        assert stop.value.code == 2 and said in error and "release" in error
    assert "cityscapes val" in error and "acdc val" in error
    assert "--dataset cityscapes --split val scores it there" in error


def test_the_page_is_whole_and_names_are_text(seeds):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (8, 16, 3), dtype=np.uint8)
    maps = {name: rng.integers(0, 19, (8, 16), dtype=np.uint8) for name in ("pipa", "source <i>")}
    groups = grouped([read_run(path) for path in seeds])
    text = page(groups, [Pictures("scene <b>", image, maps["pipa"], maps)])
    assert len(check(text).sources) == 4
    assert "<i>" not in text and "<b>s" not in text and "source &lt;i&gt;" in text
    assert text.count("42.0 ± 2.8") == 2 and 'class="spread" style="left:39.2%;width:5.7%"' in text
    assert "http" not in text and "<script" not in text


def test_the_command_writes_the_page_with_what_each_run_sees(
    tmp_path, few_scenes, capsys, monkeypatch
):
    folders, mirrored, predict = [], [], compare.predict_sample

    def watched(*args, **view):
        mirrored.append(view["flip"])
        return predict(*args, **view)

    monkeypatch.setattr(compare, "predict_sample", watched)
    for name, seed in (("one", 0), ("two", 1)):
        how = {"run": {"name": name}, "evaluation": {"flip": True}}
        trainer = trainer_for(tmp_path, "streets_source", seed=seed, **how)
        trainer.run()
        folders.append(str(trainer.run_dir))
    out = tmp_path / "page" / "comparison.html"
    assert main([*folders, "--out", str(out), "--images", "2"]) == 0
    text = out.read_text()
    assert f"wrote {out}" in capsys.readouterr().out
    assert text.count('class="map"') == 2 * 2 and text.count('class="photo"') == 2
    assert mirrored == [True] * 2, "as the scores were taken"
    assert main([*folders, "--out", str(out), "--images", "0"]) == 0
    assert "<img" not in out.read_text()


def test_what_cannot_be_shown_is_said(seeds, tmp_path, capsys):
    runs = [str(path) for path in seeds]
    for words, said in (
        ([*runs, "--images", "-1"], "--images must be a count"),
        ([*runs, "--images", "2"], "without --out there is no page; leave out --images"),
        ([*runs, "--device", "cpu"], "without --out there is no page; leave out --device"),
        ([*runs, "--out", str(tmp_path / "x.html")], "run must be a folder with model.safetensors"),
        ([str(tmp_path / "nowhere")], "nowhere"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 2 and said in capsys.readouterr().err
