# SPDX-License-Identifier: Apache-2.0
"""Every bench runs and says what it must; how long it takes is nobody's test."""

import json
from importlib import import_module

import pytest
import torch

import bench.__main__ as command
from bench.harness import Problem, interleave, machine, measure
from pipa_fast import ops


@pytest.mark.parametrize("op", command.OPS)
def test_bench_measures_every_backend(op):
    problem = import_module(f"bench.{op}").problem(70, 24, device=torch.device("cpu"), seed=0)
    rows = measure(op, problem, seconds=0)
    backends = {row["backend"] for row in rows}
    assert backends == {"torch.mm", *ops.backends(op, torch.device("cpu"))}
    for row in rows:
        assert 0 < row["p20_ms"] <= row["p50_ms"] <= row["p80_ms"]
        assert row["repeats"] >= 5
        if row["backend"] != "torch.mm":
            assert row["loss_error"] < 1e-5 and row["grad_error"] < 1e-5
    assert command.table(op, rows).row_count == len(rows)


def test_errors_are_measured_against_float64(monkeypatch):
    """A backend that is off by a tenth is shown to be."""
    monkeypatch.setattr(ops, "backends", lambda op, device: ["wrong"])
    x = torch.nn.functional.normalize(torch.randn(8, 4), dim=1)

    def loss(x, backend):
        return x.square().sum() * (1.1 if backend == "wrong" else 1.0)

    rows = measure("any", Problem(loss, x, x, {"forward": 1, "full": 1}), seconds=0)
    assert [row["loss_error"] for row in rows[1:]] == pytest.approx([0.1, 0.1], rel=1e-4)
    assert [row["grad_error"] for row in rows[1:]] == pytest.approx([0.1, 0.1], rel=1e-4)


def test_calls_take_turns():
    order = []
    calls = {(n, ""): lambda n=n: order.append(n) for n in "ab"}
    interleave(calls, torch.device("cpu"), seconds=0)
    assert "".join(order) == "ab" * 6  # once to warm up, five times measured


def test_rows_are_saved_as_json_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    rows = [machine(torch.device("cpu")) | {"op": "pixel_contrast", "n": n} for n in (1, 2)]
    path = command.save("pixel_contrast", "Some CPU @ 2 GHz", rows)
    assert path == tmp_path / "Some_CPU_2_GHz" / "pixel_contrast.json"
    assert [json.loads(line)["n"] for line in path.read_text().splitlines()] == [1, 2]
    assert {"device", "commit", "torch", "threads"} <= rows[0].keys()
