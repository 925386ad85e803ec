# SPDX-License-Identifier: Apache-2.0
"""One of two ranks hangs, dies or is asked to stop: the others know, and the run goes on."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch

from pipa_fast.training import checkpoint

STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


def run(how, folder, *options, restarts=0):
    """Two ranks under torchrun, the second of which misbehaves."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "--max-restarts", str(restarts)]
    command += ["-m", "tests.faults.ranks", how, str(folder), *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | STORE
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)


def status(folder):
    return json.loads((folder / "streets_source/status.json").read_text())


@pytest.mark.slow
def test_a_rank_that_hangs_is_named(tmp_path):
    done = run("hang", tmp_path, "--run.timeout", "8")
    assert done.returncode != 0
    # Rank 0 says so, and before torchrun has killed it, perhaps rank 1 of itself.
    errors = [line for line in done.stderr.splitlines() if "error: rank" in line]
    assert errors and all("rank 1 is in training of step 3 since" in line for line in errors)
    for line in errors:  # rank 0 waits for it in the same step, perhaps since the same second
        since = dict(re.findall(r"rank (\d) is in training of step 3 since (\d+) s", line))
        assert int(since["1"]) >= int(since.get("0", 0)), line
    assert status(tmp_path)["state"] == "failed"
    assert "rank 1 is in training of step 3" in status(tmp_path)["reason"]


def test_a_process_that_hangs_ends_and_says_where(tmp_path):
    command = [sys.executable, "-m", "tests.faults.ranks", "hang", str(tmp_path)]
    command += ["--run.timeout", "15"]  # the first batch takes a few seconds
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 4, done.stderr
    assert "in misbehave" in done.stderr, "where each thread stands"
    assert "error: rank 0 is in training of step 3 since" in done.stderr
    assert status(tmp_path)["state"] == "failed"
    assert "rank 0 is in training of step 3" in status(tmp_path)["reason"]


@pytest.mark.slow
def test_a_rank_that_dies_is_started_again(tmp_path):
    done = run("die", tmp_path, restarts=2)  # without --run.resume auto
    assert done.returncode == 0, done.stderr[-3000:]
    assert status(tmp_path)["state"] == "finished"
    (tmp_path / "whole").mkdir()
    whole = run("nothing", tmp_path / "whole")
    assert whole.returncode == 0
    states = [
        checkpoint.load_newest(folder / "streets_source")
        for folder in (tmp_path, tmp_path / "whole")
    ]
    for name, value in states[0]["student"].items():
        assert torch.equal(value, states[1]["student"][name]), name


@pytest.mark.slow
def test_all_ranks_stop_where_one_is_asked(tmp_path):
    done = run("ask", tmp_path)
    assert done.returncode == 0  # 1 where torchrun itself is told, whatever its workers say
    assert status(tmp_path)["state"] == "stopped" and status(tmp_path)["iteration"] == 5
    state = checkpoint.load_newest(tmp_path / "streets_source")
    assert state is not None and state["iteration"] == 5
    assert run("nothing", tmp_path, "--run.resume", "auto").returncode == 0
    assert status(tmp_path) == {"state": "finished", "iteration": 6, "reason": ""}
