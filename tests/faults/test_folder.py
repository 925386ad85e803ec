# SPDX-License-Identifier: Apache-2.0
"""A run's folder: two jobs on it, what its status says, and a checkpoint that cannot be written."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest
import torch

from pipa_fast.training import checkpoint, lock
from pipa_fast.training.trainer import Interrupted
from tests.training.test_trainer import trainer_for

pytestmark = pytest.mark.usefixtures("few_scenes")
HOLD = """
import sys
from pathlib import Path
from pipa_fast.training.lock import lock_run
with lock_run(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other_job(tmp_path):
    """Another process at work on a run's folder."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "streets_source")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as job:
        assert job.stdout.readline() == "held\n"
        yield job
        job.kill()


def test_two_jobs_on_one_folder(tmp_path, other_job):
    with pytest.raises(ValueError, match=f"in use by process {other_job.pid} on .*--run.name"):
        trainer_for(tmp_path, "streets_source").run()
    assert not (tmp_path / "streets_source").exists()


def test_the_lock_of_a_killed_job_is_no_lock(tmp_path, other_job):
    other_job.kill()
    other_job.wait()
    assert (tmp_path / ".streets_source.lock").exists()
    with lock.lock_run(tmp_path / "streets_source"):
        pass


def test_processes_of_a_killed_job_do_not_hold_its_lock(tmp_path):
    """As those that load images, which may live on for a while."""
    hold = "import os\n" + HOLD.replace("    print", "    os.fork() and print")
    command = [sys.executable, "-c", hold, str(tmp_path / "run")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, start_new_session=True, **pipes) as job:
        assert job.stdout.readline() == "held\n"
        job.kill()
        job.wait()
        with lock.lock_run(tmp_path / "run"):
            pass
        os.killpg(job.pid, signal.SIGKILL)


def test_a_history_that_was_cut_is_no_obstacle(tmp_path):
    with pytest.raises(Interrupted):
        trainer_for(tmp_path, "streets_source", run={"stop_after": 3}).run()
    history = tmp_path / "streets_source/history.jsonl"
    history.write_text(history.read_text() + '{"kind": "train", "iter')
    trainer_for(tmp_path, "streets_source", run={"resume": "auto"}).run()
    records = [json.loads(line) for line in history.read_text().splitlines()]
    assert [r["iteration"] for r in records if r["kind"] == "train"] == [2, 4, 6]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_saves_and_tells(tmp_path, monkeypatch, number):
    trainer = trainer_for(tmp_path, "streets_source")
    step = trainer._train_step

    def signalled(batch):
        if trainer.iteration == 3:
            os.kill(os.getpid(), number)
        return step(batch)

    monkeypatch.setattr(trainer, "_train_step", signalled)
    with pytest.raises(Interrupted, match="after step 4"):
        trainer.run()
    status = json.loads((trainer.run_dir / "status.json").read_text())
    assert (status["state"], status["iteration"]) == ("stopped", 4)
    assert signal.Signals(number).name in status["reason"] and "--run.resume" in status["reason"]
    again = trainer_for(tmp_path, "streets_source", run={"resume": "auto"})
    again.run()
    assert json.loads((trainer.run_dir / "status.json").read_text())["state"] == "finished"


def test_a_full_disk_ends_the_run_and_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    trainer = trainer_for(tmp_path, "streets_source")
    save = torch.save

    def full(state, path):
        if state["iteration"] == 6:
            raise OSError(28, "No space left on device", str(path))
        save(state, path)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="step 6 could not be written .*No space left.*Make room"):
        trainer.run()
    status = json.loads((trainer.run_dir / "status.json").read_text())
    assert status["state"] == "failed" and "No space left" in status["reason"]
    state = checkpoint.load_newest(trainer.run_dir)
    assert state is not None and state["iteration"] == 3


def test_what_a_killed_run_half_wrote_is_removed(tmp_path):
    with pytest.raises(Interrupted):
        trainer_for(tmp_path, "streets_source", run={"stop_after": 3}).run()
    run = tmp_path / "streets_source"
    left = [run / ".status.json.77.tmp", run / "checkpoints/.step-0000004.pt.77.tmp"]
    for path in left:
        path.write_bytes(b"half")
    trainer_for(tmp_path, "streets_source", run={"resume": "auto"}).run()
    assert not any(path.exists() for path in left)


def test_a_checkpoint_that_failed_is_told_beside_what_ended_the_run(tmp_path, monkeypatch, caplog):
    trainer = trainer_for(tmp_path, "streets_source")
    step = trainer._train_step

    def full(state, file):
        raise OSError(28, "No space left on device")

    def ends(batch):
        if trainer.iteration == 4:
            raise FloatingPointError("something else")
        return step(batch)

    monkeypatch.setattr(torch, "save", full)
    monkeypatch.setattr(trainer, "_train_step", ends)
    with pytest.raises(FloatingPointError, match="something else"):
        trainer.run()
    assert "the checkpoint of step 3 could not be written" in caplog.text


def test_a_checkpoint_is_of_its_step_though_training_goes_on(tmp_path, monkeypatch):
    """What is written is a copy: the thread may be slower than the steps."""
    trainer = trainer_for(tmp_path, "streets_source")
    batches = trainer._batches()
    trainer._train_step(next(batches))
    save, states = checkpoint.save, []
    go_on = threading.Event()

    def slow(*arguments, **options):
        go_on.wait()
        states.append(arguments[1])
        return save(*arguments, **options)

    monkeypatch.setattr(checkpoint, "save", slow)
    before = {k: v.clone() for k, v in trainer.network.state_dict().items()}
    trainer._save()
    trainer._train_step(next(batches))
    go_on.set()
    trainer.writer.wait()
    (state,) = states
    assert all(torch.equal(v, state["student"][k]) for k, v in before.items())
    now = trainer.network.state_dict()
    assert any(not torch.equal(v, now[k]) for k, v in before.items())


def test_other_ranks_take_over_where_the_whole_batch_is_the_same(tmp_path, capsys):
    stopped = trainer_for(tmp_path, "streets_source", run={"stop_after": 3})
    with pytest.raises(Interrupted):
        stopped.run()
    state = checkpoint.load_newest(stopped.run_dir)
    assert state is not None
    state["ranks"], state["config"]["data"]["batch_size"] = 2, 1
    checkpoint.save(stopped.run_dir, state, 4)
    trainer_for(tmp_path, "streets_source", run={"resume": "auto"}).run()
    assert "on 1 ranks instead of 2: every step sees the same images" in capsys.readouterr().out
    state["ranks"], state["iteration"] = 4, 5
    checkpoint.save(stopped.run_dir, state, 7)
    with pytest.raises(ValueError, match="data.batch_size: 4, now 2.*of all ranks"):
        trainer_for(tmp_path, "streets_source", run={"resume": "auto"}).run()
