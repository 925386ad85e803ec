# SPDX-License-Identifier: Apache-2.0
"""What is made of a step's times by processes, and that its measurement runs. No time is tested."""

import pytest

import bench.__main__ as command
from bench import scaling_step
from bench.rows import load


def test_ranks_beyond_the_cores_take_turns():
    rows = [{"ranks": 1, "p50_ms": 100.0, "contrast_ms": 20.0, "reduce_ms": 0.0}]
    rows += [{"ranks": n, "p50_ms": 200.0, "contrast_ms": 30.0, "reduce_ms": 10.0} for n in (2, 4)]
    said = scaling_step.explain(rows, cores=2)
    assert [row["model_ms"] for row in said] == [100.0, 120.0, 200.0]
    assert [row["model_error"] for row in said] == pytest.approx([0, -0.4, 0])


@pytest.mark.slow
def test_two_processes_step(tmp_path):
    out = tmp_path / "rows.json"
    command.main(["scaling_step", "--ranks", "1", "2", "--steps", "1", "--json", str(out)])
    rows = load([out])
    assert [row["ranks"] for row in rows] == [1, 2]
    assert rows[0]["reduce_ms"] == 0 < rows[1]["reduce_ms"] < rows[1]["p50_ms"]


def test_one_rank_is_needed(capsys):
    with pytest.raises(SystemExit):
        command.main(["scaling_step", "--ranks", "2"])
    assert "--ranks must hold 1" in capsys.readouterr().err
