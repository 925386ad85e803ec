# SPDX-License-Identifier: Apache-2.0
"""What SECURITY.md promises: files from outside run nothing, and names lead nowhere else."""

import ast
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipa_fast import predict
from pipa_fast.checks import is_below
from pipa_fast.data.labels import CLASSES
from pipa_fast.evaluation.embedding import Projection
from pipa_fast.evaluation.panels import Panel
from pipa_fast.evaluation.pictures import find_pictures
from pipa_fast.evaluation.report import render
from pipa_fast.evaluation.runs import Run
from pipa_fast.models.published_names import read_file
from pipa_fast.training.config import load, merge, parse, read_recipe
from tests.test_house import PYTHON, name

SCRIPT = "<script>alert('x')</script>"
OUTSIDE = ["../x", "/x", "a/../../x", "..", ".", "", "a/\0"]


class Runs:
    """A pickle of this makes a folder where it is loaded."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self):
        return os.mkdir, (str(self.made),)


def test_a_published_checkpoint_that_runs_code_is_refused(tmp_path):
    made, file = tmp_path / "made", tmp_path / "latest.pth"
    torch.save({"state_dict": {"a": Runs(made)}}, file)
    with pytest.raises(ValueError, match="latest.pth"):
        read_file(file)
    assert not made.exists()
    torch.load(file, weights_only=False)  # which shows that it would
    assert made.exists()


def test_a_recipe_that_runs_code_is_refused(tmp_path):
    made = tmp_path / "made"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"seed: !!python/object/apply:os.mkdir ['{made}']\n")
    with pytest.raises(ValueError, match="recipe.yaml cannot be read as YAML"):
        read_recipe(str(recipe))
    assert not made.exists()


@pytest.mark.parametrize("path", PYTHON, ids=name)
def test_nothing_is_unpickled_that_may_run(path: Path):
    """What ruff's S rules do not look at: torch.load, numpy.load, and code from a model hub."""
    if path.name == Path(__file__).name:
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        called, given = ast.unparse(node.func), {k.arg: k.value for k in node.keywords}
        if called == "torch.load":
            assert ast.unparse(given["weights_only"]) == "True", f"line {node.lineno}"
        assert not {"allow_pickle", "trust_remote_code"} & given.keys(), f"line {node.lineno}"


@pytest.mark.parametrize("bad", OUTSIDE)
def test_a_run_cannot_be_named_out_of_its_folder(bad, capsys):
    assert not is_below(bad)
    recipe = read_recipe("streets_source")
    with pytest.raises(ValueError, match=r"run\.name must be"):
        load(merge(recipe, {"run": {"name": bad}}))
    with pytest.raises(ValueError, match="recipe must be"):
        load(merge(recipe, {"recipe": bad}))
    with pytest.raises(SystemExit) as ended:
        parse(["--config", "streets_source", f"--run.name={bad}"])
    assert ended.value.code == 2 and "run.name" in capsys.readouterr().err


def test_a_run_may_be_named_in_folders():
    config = load(merge(read_recipe("streets_source"), {"run": {"name": "a/b..c/.d"}}))
    assert config.run_dir == Path("runs/a/b..c/.d")


@pytest.mark.parametrize("bad", OUTSIDE)
def test_a_picture_cannot_be_named_out_of_its_folder(bad, tmp_path):
    options = predict.parser().parse_args(["x", "--run", "x", "--out", str(tmp_path / "out")])
    with pytest.raises(ValueError, match="name must be"):
        predict.write(
            bad, np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), np.uint8), CLASSES, options
        )
    assert not list(tmp_path.iterdir())


def test_odd_names_of_pictures_stay_below(tmp_path):
    source, secret = tmp_path / "source", tmp_path / "secret"
    for folder in (source / "a..b", secret):
        folder.mkdir(parents=True)
    for file in ("a.png", "x..png", "a..b/...png", "..y.png"):
        Image.new("RGB", (2, 2)).save(source / file, "PNG")
    Image.new("RGB", (2, 2)).save(secret / "s.png")
    (source / "link").symlink_to(secret, target_is_directory=True)
    names = [picture.name for picture in find_pictures(source, recursive=True)]
    assert len(names) == 4
    out = tmp_path / "out"
    for each in names:
        assert (out / f"{each}_overlay.png").resolve().is_relative_to(out)


def test_the_report_escapes_every_name():
    """Names come from folders, recipes and files that others wrote."""
    losses = [{"kind": "train", "iteration": i, "loss": {SCRIPT: 1.0}} for i in (1, 2)]
    scores = [{"kind": "eval", "iteration": i, "miou": 1.0} for i in (1, 2)]
    run = Run(
        path=Path(f"runs/{SCRIPT}"),
        recipe=SCRIPT,
        iteration=2,
        seed=0,
        miou=1.0,
        iou={SCRIPT: 1.0, "road": 2.0},
        config={SCRIPT: SCRIPT, "data": {"source": SCRIPT, "target": SCRIPT}, "model": {}}
        | {"list": [SCRIPT]},
        history=[*losses, *scores],
    )
    maps = np.zeros((2, 2), np.uint8)
    panel = Panel(
        name=SCRIPT,
        image=np.zeros((2, 2, 3), np.uint8),
        truth=maps,
        prediction=maps,
        confidence=np.zeros((2, 2), np.float32),
        confidence_of="teacher",
    )
    view = Projection(torch.zeros(2, 2), torch.zeros(2, dtype=torch.int64), 0.5, 0.5)
    page = render(run, run, [panel], view, SCRIPT, view)
    assert page.count("&lt;script&gt;") > 10
    assert "<script" not in page
