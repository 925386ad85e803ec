# SPDX-License-Identifier: Apache-2.0
"""Which weights of a run are scored, shown and exported: of its end, of a step, of a branch."""

import json
import shutil

import pytest
import torch
import torch.distributed as dist
from PIL import Image

from pipa_fast import evaluate, export, predict, pretrained
from pipa_fast.training import checkpoint
from pipa_fast.training.trainer import Interrupted
from tests.training.test_trainer import trainer_for

pytestmark = pytest.mark.usefixtures("few_scenes")
EVERY = {"checkpoint_every": 1, "keep_every": 1}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run that has ended after its second step, and keeps both."""
    from pipa_fast.data import loader
    from tests.few import Few

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader, "build_dataset", Few)
        trainer = trainer_for(tmp_path_factory.mktemp("runs"), iterations=2, run=EVERY)
        trainer.run()
    return trainer.run_dir


@pytest.fixture
def ended(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def stopped(ended):
    """The same run as it would be if it had been stopped."""
    for name in (checkpoint.EXPORTED, "results.json"):
        (ended / name).unlink()
    return ended


def state_of(run, step):
    return checkpoint.load(checkpoint.path_of(run, step))


def is_student(network, state):
    return same(network, state["student"])


def is_teacher(network, state):
    return same(network, {k.removeprefix("network."): v for k, v in state["teacher"].items()})


def same(network, weights):
    return all(torch.equal(value, weights[key]) for key, value in network.state_dict().items())


def asked(run, file=None, branch=None):
    weights = checkpoint.find_weights(run, file, branch)
    return checkpoint.load_run(run, weights)[0]


def test_a_run_ends_with_its_student(ended, caplog):
    assert is_student(asked(ended), state_of(ended, 2))
    assert is_student(asked(ended, branch="student"), state_of(ended, 2))
    assert not same(asked(ended), state_of(ended, 1)["student"])
    assert not caplog.text


def test_its_teacher_is_read_from_the_checkpoint_of_its_last_step(ended):
    assert is_teacher(asked(ended, branch="teacher"), state_of(ended, 2))
    checkpoint.path_of(ended, 2).unlink()
    expected = r"branch must be student, .*step-0000002.pt, with the teacher's, is gone; got 'tea"
    with pytest.raises(ValueError, match=expected):
        asked(ended, branch="teacher")


def test_a_run_that_has_not_ended_gives_its_newest_checkpoint_and_says_so(stopped, caplog):
    assert is_student(asked(stopped), state_of(stopped, 2))
    path = checkpoint.path_of(stopped, 2)
    told = f"{stopped} has no model.safetensors yet: taking {path}, student at step 2"
    assert told in caplog.text
    assert is_teacher(asked(stopped, branch="teacher"), state_of(stopped, 2))
    before = state_of(stopped, 1)
    path.write_bytes(path.read_bytes()[:-1])
    assert is_student(asked(stopped), before)
    assert f"{checkpoint.path_of(stopped, 1)}, student at step 1" in caplog.text


def test_a_checkpoint_that_is_named_is_taken_whatever_else_there_is(trained, stopped, caplog):
    first = checkpoint.path_of(stopped, 1)
    for run in (trained, stopped):
        assert is_student(asked(run, first), state_of(run, 1))
        assert is_teacher(asked(run, first, "teacher"), state_of(run, 1))
    assert not caplog.text


def test_a_branch_that_is_not_there_is_told(tmp_path, ended):
    source = trainer_for(tmp_path, "streets_source", run={"stop_after": 1})
    with pytest.raises(Interrupted):
        source.run()
    with pytest.raises(ValueError, match="branch must be student: .*pt has no teacher; got 'teac"):
        asked(source.run_dir, branch="teacher")
    file = ended / checkpoint.EXPORTED
    with pytest.raises(ValueError, match="branch must be left out with a .safetensors.*'student'"):
        asked(ended, file, "student")
    (ended / "results.json").unlink()  # so is what convert writes, of either branch
    with pytest.raises(ValueError, match="branch must be left out: .* does not tell whose"):
        asked(ended, branch="student")
    assert checkpoint.find_weights(ended).branch is None


def test_a_folder_with_neither_is_no_run(stopped):
    shutil.rmtree(stopped / "checkpoints")
    with pytest.raises(ValueError, match="a folder with model.safetensors, or with checkpoints"):
        checkpoint.load_run(stopped)


def test_evaluate_scores_what_was_asked_for(stopped, capsys):
    words = ["--run", str(stopped), "--device", "cpu"]
    assert evaluate.main(words) == 0
    path = str(checkpoint.path_of(stopped, 2))
    record = json.loads((stopped / "evaluation_streets_real_val.json").read_text())
    assert (record["checkpoint"], record["branch"]) == (path, "student")
    assert evaluate.main([*words, "--branch", "teacher"]) == 0
    record = json.loads((stopped / "evaluation_streets_real_val_teacher.json").read_text())
    assert (record["checkpoint"], record["branch"]) == (path, "teacher")
    said = " ".join(capsys.readouterr().out.split())
    assert "student at step 2 on streets_real" in said and "teacher at step 2 on" in said


def test_ranks_that_find_other_checkpoints_score_none(stopped, monkeypatch):
    def gather(found, mine):
        found[:] = [mine, mine.replace("0002", "0003")]

    options = evaluate.parser().parse_args(["--run", str(stopped)])
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_gather_object", gather)
    with pytest.raises(ValueError, match="--checkpoint must be given, as the run is at work"):
        evaluate.weights_of(options)


def test_predict_and_export_take_them_too(stopped, tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    first = ["--checkpoint", str(checkpoint.path_of(stopped, 1)), "--branch", "teacher"]
    words = [str(tmp_path / "a.png"), "--run", str(stopped), "--out", str(tmp_path / "out")]
    assert predict.main([*words, "--device", "cpu", *first]) == 0
    assert (tmp_path / "out/a_overlay.png").is_file()
    out = tmp_path / "a.pt2"
    words = ["--run", str(stopped), "--out", str(out), *first, "--size", "32", "32"]
    assert export.main(words) == 0
    images = torch.rand(1, 3, 32, 32)
    network = asked(stopped, checkpoint.path_of(stopped, 1), "teacher")
    with torch.no_grad():
        found = torch.export.load(out).module()(images)
        expected = export.Segmenter(network)(images)
    torch.testing.assert_close(found, expected)


def test_a_folder_for_others_of_a_step_has_no_score(stopped, tmp_path):
    words = ["--run", str(stopped), "--out", str(tmp_path / "mine"), "--branch", "teacher"]
    assert export.main(words) == 0
    folder = tmp_path / "mine"
    assert is_teacher(pretrained.from_pretrained(folder), state_of(stopped, 2))
    card = (folder / "README.md").read_text()
    assert "2 steps of" in card and "validation images | not measured |" in card
    settings = (folder / "config.yaml").read_text()
    assert settings.startswith("# weights, teacher at step 2\n")


def test_a_folder_of_weights_from_elsewhere_claims_nothing_of_them(stopped, tmp_path, trained):
    words = ["--run", str(stopped), "--out", str(tmp_path / "mine")]
    assert export.main([*words, "--checkpoint", str(trained / checkpoint.EXPORTED)]) == 0
    card = (tmp_path / "mine/README.md").read_text()
    assert "an unknown number of steps" in card and "not measured" in card
    assert not (tmp_path / "mine/config.yaml").read_text().startswith("#")
