# SPDX-License-Identifier: Apache-2.0
"""Training and what comes after it on a GPU; without one, tests/pretend runs this file."""

import json
import sys

import pytest
import torch

from pipa_fast import evaluate, predict, train
from tests.ops.test_waits import a_trainer

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.usefixtures("few_scenes"),
]


def test_a_step_is_that_of_a_cpu():
    found = {}
    for device in ("cpu", "cuda"):
        trainer = a_trainer(device)
        losses = trainer._train_step(next(trainer._batches()))
        assert all(loss.device.type == device for loss in losses.values())
        found[device] = {name: loss.item() for name, loss in losses.items()}
    assert len(found["cpu"]) == 7 and found["cuda"] == pytest.approx(found["cpu"], rel=1e-2)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_keeps_weights_and_states_in_float32(precision):
    trainer = a_trainer("cuda", "--precision", precision)
    before = [p.detach().clone() for p in trainer.network.parameters()]
    for batch in [next(trainer._batches())] * 4:  # loss scaling may leave the first ones out
        losses = trainer._train_step(batch)
    assert all(loss.isfinite() for loss in losses.values())
    dropped, in_a_row = trainer.guard.counts()
    assert in_a_row == 0 and dropped <= 2 * (precision == "fp16")
    after = list(trainer.network.parameters())
    assert any(not torch.equal(p, q) for p, q in zip(before, after, strict=True))
    assert {p.dtype for p in after} == {torch.float32}
    states = [v for s in trainer.optimizer.state.values() for v in s.values()]
    assert {v.dtype for v in states} == {torch.float32}


def test_a_run_is_resumed_evaluated_and_used(tmp_path, monkeypatch, capsys):
    run = tmp_path / "streets_pipa"
    words = ["--config", "streets_pipa", "--device", "cuda", "--run.dir", str(tmp_path)]
    words += ["--iterations", "3", "--data.crop", "[32, 32]", "--data.patch_crop", "[32, 32]"]
    words += ["--data.num_workers", "1", "--precision", "fp16", "--run.resume", "auto"]
    words += ["--adaptation.patch.start", "0"]
    for more in (["--run.stop_after", "2"], []):
        monkeypatch.setattr(sys, "argv", ["train", *words, *more])
        assert train.main() == 0
    assert "resumed" in capsys.readouterr().out
    assert json.loads((run / "results.json").read_text())["iteration"] == 3
    assert evaluate.main(["--run", str(run), "--device", "cuda", "--flip"]) == 0
    painted = str(tmp_path / "painted")
    images = str(next(tmp_path.rglob("*.png")))
    assert predict.main(["--run", str(run), images, "--out", painted, "--device", "cuda"]) == 0
