# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest
import torch

from bench import soak

STEPS = np.arange(50, 10_001, 50, dtype=float)


def trace(memory, *, files=17, threads=3):
    """Samples of a run whose memory, in bytes, is a function of the step."""
    return [
        {"step": int(step), "resident": int(memory(step)), "files": files, "threads": threads}
        | {"children_resident": 10**8, "allocated": int(memory(step) / 2)}
        for step in STEPS
    ]


def test_a_slope_and_its_error():
    noise = np.random.default_rng(0).normal(0, 1e6, len(STEPS))
    fitted, error = soak.slope(STEPS, 3e3 * STEPS + noise)
    plain = 1e6 / np.sqrt(((STEPS - STEPS.mean()) ** 2).sum())
    assert abs(fitted - 3e3) < 3 * error and 0.7 * plain < error < 1.5 * plain
    # samples that are alike tell less
    _, wide = soak.slope(STEPS, 3e3 * STEPS + np.repeat(noise[::10], 10))
    assert wide > 2 * error
    assert soak.slope(STEPS, 0 * STEPS) == (0, 0)
    assert soak.slope(STEPS[:2], STEPS[:2]) == (0, np.inf)


def test_what_is_flat_and_what_grows():
    dice = np.random.default_rng(0)
    flat = trace(lambda step: 5e8 + dice.normal(0, 2e5) + 1e8 * min(step, 1500) / 1500)
    figures, grown = soak.judge(flat)
    assert grown == [] and abs(figures["resident_slope"]) < 20 and figures["warm_samples"] == 160
    leak = trace(lambda step: 5e8 + dice.normal(0, 2e5) + 3e3 * step)
    assert [what.split(":")[0] for what in soak.judge(leak)[1]] == ["resident", "allocated"]
    for name in ("files", "threads"):
        opened = [*flat[:-1], flat[-1] | {name: 40}]
        assert any(what.startswith(name) for what in soak.judge(opened)[1])


def test_a_short_run(few_scenes, tmp_path, capsys):
    out = tmp_path / "soak.json"
    soak.main(["--steps", "20", "--every", "1", "--workers", "0", "--json", str(out)])
    (row,) = [json.loads(line) for line in out.read_text().splitlines()]
    assert row["samples"]["step"] == list(range(1, 21)) and row["warm_samples"] == 16
    assert min(row["samples"]["resident"]) > min(row["samples"]["allocated"]) > 1e6
    assert {"device", "commit", "resident_slope", "files_last", "grows"} <= row.keys()
    assert "resident_slope" in capsys.readouterr().out


def test_a_leak_is_seen_by_the_run_itself(few_scenes, tmp_path, monkeypatch, capsys):
    kept = []
    step = soak.Watched._train_step

    def leaking(self, batch):
        kept.append(torch.ones(2**19))  # 2 MB
        return step(self, batch)

    monkeypatch.setattr(soak.Watched, "_train_step", leaking)
    assert soak.main(["--steps", "30", "--every", "1", "--workers", "0"]) == 1
    assert "grows: resident: 2" in capsys.readouterr().err


def test_too_few_samples_are_refused(capsys):
    with pytest.raises(SystemExit):
        soak.main(["--steps", "10", "--every", "1"])
    assert "20 times --every" in capsys.readouterr().err
