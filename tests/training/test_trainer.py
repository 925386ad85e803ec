# SPDX-License-Identifier: Apache-2.0
import functools
import json
import os
import signal
import subprocess
import sys
import weakref
from types import SimpleNamespace

import pytest
import torch

from pipa_fast.training import checkpoint, distributed
from pipa_fast.training import trainer as loop
from pipa_fast.training.config import load, merge, read_recipe
from pipa_fast.training.trainer import Interrupted, Trainer
from tests.faults.kills import tensors

TINY = {
    "iterations": 6,
    "data": {"crop": [32, 32], "patch_crop": [32, 32], "batch_size": 2},
    "adaptation": {
        "mixed": {"threshold": 0.05},
        "pixel": {"num_anchors": 64},
        "patch": {
            "num_pairs": 64,
            "bank": 128,
            "confidence_threshold": 0.05,
            "bank_confidence": 0.05,
            "start": 0,
            "ramp": 0,
        },
    },
    "run": {"log_every": 2, "eval_every": 100, "checkpoint_every": 3, "report": False},
}


pytestmark = pytest.mark.usefixtures("few_scenes")


def trainer_for(folder, recipe="streets_pipa", **changes):
    config = load(merge(merge(read_recipe(recipe), TINY), changes))
    config.run.dir = str(folder)
    return Trainer(config, distributed.start("cpu"))


def test_a_run_leaves_what_it_promises(tmp_path):
    trainer = trainer_for(tmp_path)
    result = trainer.run()
    folder = tmp_path / "streets_pipa"
    results = json.loads((folder / "results.json").read_text())
    assert results["miou"] == round(result.miou, 4)
    assert (results["recipe"], results["iteration"], results["seed"]) == ("streets_pipa", 6, 0)
    surroundings = {k: results[k] for k in ("images_per_step", "ranks", "device", "dtype", "torch")}
    assert surroundings == {
        "images_per_step": 2,
        "ranks": 1,
        "device": "cpu",
        "dtype": str(trainer.dtype or torch.float32).removeprefix("torch."),
        "torch": torch.__version__,
    }
    records = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert [r["iteration"] for r in records if r["kind"] == "train"] == [2, 4, 6]
    names = {"source", "mixed", "pixel_source", "pixel_mixed", "patch"}
    assert records[0]["loss"].keys() == names
    assert list(folder.glob("events.out.tfevents.*"))
    network, config = checkpoint.load_run(folder)
    assert config == trainer.config
    image = torch.rand(1, 3, 32, 32)
    trainer.network.eval()
    assert torch.equal(network(image).logits, trainer.network(image).logits)


def test_the_time_of_an_evaluation_is_not_the_steps_and_waiting_is_told(tmp_path, monkeypatch):
    now, evaluate = [0.0], loop.evaluate
    trainer = trainer_for(tmp_path, "streets_source", run={"eval_every": 2})
    step, draw = trainer._train_step, trainer._batches

    def take_a_second(batch):
        now[0] += 1
        return step(batch)

    def wait_for_three(batches):
        for batch in batches:
            now[0] += 3
            yield batch

    def take_a_minute(*args, **kwargs):
        now[0] += 60
        return evaluate(*args, **kwargs)

    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(loop, "evaluate", take_a_minute)
    monkeypatch.setattr(trainer, "_train_step", take_a_second)
    monkeypatch.setattr(trainer, "_batches", lambda: wait_for_three(draw()))
    trainer.run()
    records = map(json.loads, (trainer.run_dir / "history.jsonl").open())
    logged = [record for record in records if record["kind"] == "train"]
    assert [r["seconds_per_step"] for r in logged] == [4.0] * 3
    assert [r["images_per_second"] for r in logged] == [0.5] * 3
    assert [r["waiting"] for r in logged] == [0.75] * 3


def test_an_evaluation_holds_as_much_at_once_as_it_may(tmp_path, monkeypatch):
    asked, evaluate = [], loop.evaluate

    def watched(*args, **options):
        asked.append((options["batch_size"], options["window"].batch))
        return evaluate(*args, **options)

    monkeypatch.setattr(loop, "evaluate", watched)
    how = {"crop": [64, 64], "batch_size": 3, "window_batch": 2}
    trainer_for(tmp_path, "streets_source", evaluation=how).run()
    assert set(asked) == {(3, 2)}


def test_a_stopped_run_ends_with_the_bytes_of_the_unbroken_one(tmp_path):
    whole = trainer_for(tmp_path / "whole")
    whole.run()
    first = trainer_for(tmp_path / "broken")
    take = first._train_step

    def stop_after_three(batch):
        losses = take(batch)
        first.stop_asked = first.iteration == 3
        return losses

    first._train_step = stop_after_three
    with pytest.raises(Interrupted, match="step 4"):
        first.run()
    second = trainer_for(tmp_path / "broken", run={"resume": "auto"})
    second.run()
    expected, found = dict(tensors(whole.state())), dict(tensors(second.state()))
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name
    histories = [
        [
            r["loss"]
            for r in map(json.loads, (tmp_path / n / "streets_pipa/history.jsonl").open())
            if r["kind"] == "train"
        ]
        for n in ("whole", "broken")
    ]
    assert histories[0] == histories[1]


def test_a_run_killed_in_an_evaluation_repeats_no_step_and_makes_up_for_it(tmp_path, monkeypatch):
    changes = {"iterations": 4, "run": {"eval_every": 2, "checkpoint_every": 2}}
    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate", lambda *_, **__: (_ for _ in ()).throw(SystemExit))
        with pytest.raises(SystemExit):
            trainer_for(tmp_path, "streets_source", **changes).run()
    steps = []
    for iteration in (2, 4):  # what goes on where all is there evaluates once more, at the end
        changes["run"]["resume"] = "auto"
        again = trainer_for(tmp_path, "streets_source", **changes)
        take = again._train_step
        again._train_step = lambda batch, take=take: steps.append(1) or take(batch)
        again.run()
        assert len(steps) == 2, iteration
    records = map(json.loads, (again.run_dir / "history.jsonl").open())
    assert [r["iteration"] for r in records if r["kind"] == "eval"] == [2, 4, 4]


def test_a_run_started_anew_keeps_the_old_one_and_resumes_from_itself(tmp_path, capsys):
    trainer_for(tmp_path, "streets_source").run()
    before = (tmp_path / "streets_source" / "model.safetensors").read_bytes()
    again = trainer_for(tmp_path, "streets_source", seed=1)
    take = again._train_step

    def stop_after_one(batch):
        again.stop_asked = True
        return take(batch)

    again._train_step = stop_after_one
    with pytest.raises(Interrupted, match="step 1"):
        again.run()
    state = checkpoint.load_newest(tmp_path / "streets_source")
    assert state is not None and (state["iteration"], state["config"]["seed"]) == (1, 1)
    assert not (tmp_path / "streets_source" / "results.json").exists()
    kept = tmp_path / "streets_source.1"
    assert str(kept) in capsys.readouterr().out.replace("\n", "")
    assert (kept / "model.safetensors").read_bytes() == before
    assert checkpoint.load_newest(kept)["config"]["seed"] == 0


def test_checkpoints_of_a_multiple_are_kept_for_a_look_back(tmp_path):
    often = {"checkpoint_every": 1, "keep": 1, "keep_every": 2}
    run = trainer_for(tmp_path, "streets_source", run=often)
    run.run()
    assert [p.name for p in checkpoint.found(run.run_dir)] == [
        f"step-000000{i}.pt" for i in (6, 4, 2)
    ]


def test_a_term_that_a_short_run_never_reaches_is_told(tmp_path, capsys):
    late = {"adaptation": {"patch": {"start": 2}}}
    trainer_for(tmp_path, iterations=2, **late).run()
    assert (
        "patch takes no part: it starts at step 2, and the run ends at 2" in capsys.readouterr().out
    )
    trainer_for(tmp_path, iterations=3, **late).run()
    assert "takes no part" not in capsys.readouterr().out


def test_too_few_anchors_for_the_classes_of_a_step_are_told(tmp_path, capsys):
    """Where (image, class) pairs outnumber them, `ops.sample_anchors` draws none."""
    for anchors, told in ((37, True), (38, False), ("all", False)):
        pixel = {"num_anchors": anchors, "images": "source"}
        trainer = trainer_for(
            tmp_path, iterations=1, adaptation={"pixel": pixel}, data={"batch_size": 2}
        )
        assert trainer.config.model.num_classes == 19
        trainer.run()
        expected = "pixel draws no anchors in steps whose 2 images show more than 37 classes in sum"
        assert (expected in " ".join(capsys.readouterr().out.split())) == told


def test_a_compiled_run_compiles_for_its_crops_alone(tmp_path, monkeypatch):
    """Not for any size, which inductor cannot with every encoder, nor for validation images."""
    seen = set()

    def noting(program, inputs):
        images = [x for x in inputs if x.dim() == 4 and x.shape[1] == 3 and x.shape[2] > 7]
        seen.update(tuple(x.shape[2:]) for x in images)
        return program

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=noting))
    trainer = trainer_for(
        tmp_path, iterations=2, model={"compile": True}, data={"patch_crop": [48, 48]}
    )
    trainer.run()
    assert seen == {(32, 32), (48, 48)}


def test_other_settings_do_not_resume(tmp_path):
    trainer_for(tmp_path, "streets_source", iterations=3).run()
    other = trainer_for(tmp_path, "streets_source", iterations=4, run={"resume": "auto"})
    with pytest.raises(ValueError, match="iterations: 3, now 4"):
        other.run()


def test_a_run_of_a_version_without_a_setting_goes_on_with_its_default(tmp_path):
    trainer = trainer_for(tmp_path, iterations=1)
    trainer.run()
    state = checkpoint.load_newest(trainer.run_dir)
    del state["config"]["model"]["pixel_features"]
    trainer_for(tmp_path, iterations=1).restore(state)
    other = trainer_for(tmp_path, iterations=1, model={"pixel_features": "encoder"})
    with pytest.raises(ValueError, match="model.pixel_features: 'fused', now 'encoder'"):
        other.restore(state)


def test_what_changes_no_result_may_change_when_a_run_goes_on(tmp_path):
    """Where memory ends at the step at which a term starts, say."""
    whole = trainer_for(tmp_path / "whole", "streets_source")
    whole.run()
    stop = {"resume": "auto", "stop_after": 3}
    with pytest.raises(Interrupted):
        trainer_for(tmp_path / "broken", "streets_source", run=stop).run()
    changes = {"model": {"checkpoint_activations": True}, "run": {"resume": "auto"}}
    again = trainer_for(tmp_path / "broken", "streets_source", **changes)
    again.run()
    assert again.network.encoder.checkpoint_activations
    ours, expected = (t.run_dir / checkpoint.EXPORTED for t in (again, whole))
    assert ours.read_bytes() == expected.read_bytes()


def test_a_run_that_goes_on_keeps_nothing_of_the_checkpoint(tmp_path, monkeypatch):
    """It is as large as the network four times, on the host of each rank."""
    with pytest.raises(Interrupted):
        trainer_for(tmp_path, "streets_source", run={"stop_after": 3}).run()
    trainer = trainer_for(tmp_path, "streets_source", run={"resume": "auto"})
    load, take, kept = checkpoint.load_newest, trainer._train_step, []

    class State(dict):
        """A dict that can be referred to weakly."""

    def loaded(run_dir):
        state = State(load(run_dir))
        kept.append(weakref.ref(state))
        return state

    def step(batch):
        assert kept[0]() is None
        return take(batch)

    monkeypatch.setattr(checkpoint, "load_newest", loaded)
    trainer._train_step = step
    trainer.run()
    assert trainer.iteration == 6


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    trainer = trainer_for(tmp_path, "streets_source", run={"bad_steps": 3})
    with torch.no_grad():
        next(trainer.network.parameters()).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="step 4.*source"):
        trainer.run()


def test_half_precision_follows_float32(tmp_path):
    changes = {"iterations": 20, "data": {"crop": [16, 16], "patch_crop": [16, 16]}}
    means = {}
    for precision in ("fp32", "bf16", "fp16"):
        trainer = trainer_for(tmp_path / precision, precision=precision, **changes)
        losses = []
        for batch in trainer._batches():
            losses.append(torch.stack(list(trainer._train_step(batch).values())))
            trainer.iteration += 1
        assert torch.stack(losses).isfinite().all()
        assert trainer.scaler.is_enabled() == (precision == "fp16")
        means[precision] = torch.stack(losses)[:, 0].mean()  # the source's
    for precision, mean in means.items():  # 9 % more where nothing is learnt
        named = f"{precision}: {{}}".format  # what assert_close says, behind it
        torch.testing.assert_close(mean, means["fp32"], rtol=0.01, atol=0, msg=named)


def test_training_may_start_from_a_whole_network(tmp_path):
    first = trainer_for(tmp_path, "streets_source")
    first.run()
    start = {"model": {"start": str(first.run_dir)}}
    second = trainer_for(tmp_path, **start)
    learnt, own = first.network.state_dict(), second.network.state_dict()
    assert any(name.startswith("projections.") for name in own)
    for name, value in own.items():
        assert name.startswith("projections.") or torch.equal(value, learnt[name]), name
    for mine, own in zip(
        second.teacher.network.parameters(), second.network.export().parameters(), strict=True
    ):
        assert torch.equal(mine, own)
    second.run()
    network, _ = checkpoint.load_run(second.run_dir)  # needs the first run no more
    first.run_dir.rename(tmp_path / "gone")
    assert checkpoint.load_run(second.run_dir)[0].state_dict().keys() == network.state_dict().keys()


def test_a_start_that_is_not_there_or_of_another_network_is_named(tmp_path):
    with pytest.raises(
        ValueError, match=r"model.start must be .* model.safetensors; got 'nowhere'"
    ):
        trainer_for(tmp_path, model={"start": "nowhere"})
    trainer_for(tmp_path, "streets_source").run()
    start = {
        "start": str(tmp_path / "streets_source"),
        "hrda": {"enabled": True, "detail": [32, 32]},
    }
    with pytest.raises(ValueError, match="streets_source/model.safetensors does not fit"):
        trainer_for(tmp_path, model=start)


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGINT, 130),
        (signal.SIGTERM, 0),
        pytest.param(signal.SIGUSR1, 0, marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_and_says_how_to_go_on(tmp_path, number, status):
    """Schedulers send it to all processes of a job: those that load images, too."""
    command = [sys.executable, "-u", "-m", "pipa_fast.train", "--config", "streets_source"]
    command += ["--run.dir", str(tmp_path), "--iterations", "100000", "--run.log_every", "1"]
    command += ["--data.num_workers", "2", "--data.rare_class", "false"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step"):
            os.killpg(process.pid, number)
            break
    out, err = process.communicate(timeout=120)
    assert process.returncode == status, err + out
    assert "--run.resume auto goes on" in err
    assert checkpoint.found(tmp_path / "streets_source")
