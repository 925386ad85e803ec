# SPDX-License-Identifier: Apache-2.0
"""Steps without a finite gradient, and what a run says when nothing but them comes."""

import copy
import json

import pytest
import torch

from pipa_fast.training.trainer import Interrupted, Trainer
from tests.training.test_trainer import trainer_for

pytestmark = pytest.mark.usefixtures("few_scenes")


def everything(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Weights, buffers, bank and optimizer's state, as copies."""
    found = {**trainer.network.state_dict(), **trainer.objectives.state_dict()}
    for k, state in trainer.optimizer.state_dict()["state"].items():
        found |= {f"optimizer.{k}.{name}": torch.as_tensor(v) for name, v in state.items()}
    return copy.deepcopy(found)


def spoil(batch):
    """A batch whose images no gradient survives, and whose embeddings are not numbers."""
    return batch._replace(
        source_image=batch.source_image * torch.nan,
        target_image=batch.target_image * torch.nan,
        target_crops=batch.target_crops * torch.nan,
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_bad_step_leaves_no_trace(tmp_path, precision):
    trainer = trainer_for(tmp_path, precision=precision)
    batches = trainer._batches()
    for _ in range(2):
        trainer._train_step(next(batches))
    before, batch = everything(trainer), next(batches)
    losses = trainer._train_step(spoil(batch))
    assert not torch.stack(list(losses.values())).isfinite().all()
    after = everything(trainer)
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(value, after[name]), name
    assert trainer.guard.counts() == (1, 1)
    trainer._train_step(batch)
    assert trainer.guard.counts() == (1, 0)
    assert any(not torch.equal(value, everything(trainer)[name]) for name, value in after.items())


def test_an_infinite_gradient_counts_too(tmp_path):
    trainer = trainer_for(tmp_path, "streets_source")
    next(trainer.network.parameters()).register_hook(lambda grad: grad * torch.inf)
    trainer._train_step(next(trainer._batches()))
    assert trainer.guard.counts() == (1, 1)


def test_an_infinite_loss_counts_though_its_gradient_is_finite(tmp_path):
    trainer = trainer_for(tmp_path, "streets_source")
    (source,) = trainer.step.objectives
    loss = source.forward
    source.forward = lambda outputs: loss(outputs) + torch.inf
    before = everything(trainer)
    trainer._train_step(next(trainer._batches()))
    assert trainer.guard.counts() == (1, 1)
    after = everything(trainer)
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_large_gradients_are_finite(tmp_path):
    """Their squares overflow."""
    trainer = trainer_for(tmp_path, "streets_source")
    for parameter in trainer.network.parameters():
        parameter.register_hook(lambda grad: grad.sign() * 1e30)
    trainer._train_step(next(trainer._batches()))
    assert trainer.guard.counts() == (0, 0)


def test_a_run_of_bad_steps_ends_and_keeps_its_batch(tmp_path, monkeypatch):
    trainer = trainer_for(tmp_path, run={"bad_steps": 3, "log_every": 1})
    monkeypatch.setattr(trainer, "_batches", lambda: map(spoil, type(trainer)._batches(trainer)))
    with pytest.raises(FloatingPointError, match="no gradient was finite for 3 steps") as told:
        trainer.run()
    (kept,) = trainer.run_dir.glob("batch-*.pt")
    assert str(kept) in str(told.value)
    assert torch.load(kept, weights_only=True)["source_image"].isnan().all()
    (record,) = map(json.loads, (trainer.run_dir / "history.jsonl").read_text().splitlines()[:1])
    assert record["loss"]["source"] is None, "JSON knows no NaN"
    status = json.loads((trainer.run_dir / "status.json").read_text())
    assert (status["state"], status["iteration"]) == ("failed", 3)
    assert "no gradient was finite" in status["reason"]


def test_a_run_that_ends_between_two_logs_tells_too(tmp_path, monkeypatch, capsys):
    trainer = trainer_for(tmp_path, run={"log_every": 4})
    monkeypatch.setattr(trainer, "_batches", lambda: map(spoil, type(trainer)._batches(trainer)))
    trainer.run()
    told = capsys.readouterr().out
    assert "step      4  4 steps left out" in told and "step      6  2 steps left out" in told


def test_a_run_that_is_stopped_between_two_logs_tells_too(tmp_path, monkeypatch, capsys):
    trainer = trainer_for(tmp_path, run={"log_every": 4, "stop_after": 3})
    monkeypatch.setattr(trainer, "_batches", lambda: map(spoil, type(trainer)._batches(trainer)))
    with pytest.raises(Interrupted):
        trainer.run()
    assert "step      3  3 steps left out" in capsys.readouterr().out
