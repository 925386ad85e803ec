# SPDX-License-Identifier: Apache-2.0
"""Runs side by side: what is one group, and what the page shows."""

import re

import numpy as np
import pytest

from pipa_fast import compare
from pipa_fast.compare import main
from pipa_fast.evaluation.comparison import grouped
from pipa_fast.evaluation.comparison_page import Pictures, page
from pipa_fast.evaluation.runs import read_run
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
