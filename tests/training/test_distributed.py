# SPDX-License-Identifier: Apache-2.0
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipa_fast.training import distributed
from tests.training.distributed_step import steps

SLOW = [pytest.param(what, marks=pytest.mark.slow) for what in ("valid", "parts")]


def run_on_two(out: Path, what: str):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", steps.__module__, str(out), what]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out, weights_only=True)


@pytest.mark.parametrize("what", ["all", "hrda", "sync", *SLOW])
def test_two_ranks_equal_one_with_twice_the_batch(tmp_path, what):
    one = steps(distributed.start("cpu"), "all" if what == "parts" else what)
    two = run_on_two(tmp_path / "two.pt", what)
    assert two["reductions"] == 2, "gradients are to be reduced once a step"
    assert one["loss"].keys() == two["loss"].keys()
    terms = {"source", "features", "mixed", "masked", "pixel_source", "pixel_mixed", "patch"}
    assert terms == one["loss"].keys()
    for name, value in one["loss"].items():
        torch.testing.assert_close(two["loss"][name], value, rtol=1e-5, atol=1e-6)
        assert value > 0, f"{name} is 0 and compares nothing"
    for name, value in one["grad"].items():
        assert value is not None, f"{name} has no gradient"
        scale = value.abs().max().clamp(min=1e-8)
        error = (two["grad"][name] - value).abs().max() / scale
        assert error < 1e-3, f"{name}: {error:.1e}"


def test_two_ranks_resume_as_if_never_stopped(tmp_path):
    """What is saved is one rank's state, so that nothing may live on another rank alone."""
    runs = run_on_two(tmp_path / "out.pt", "resumed")
    for name, value in runs["whole"].items():
        assert torch.equal(runs["broken"][name], value), name


def test_cuda_asked_for_without_a_gpu_is_an_error():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ValueError, match="device must be 'cpu'"):
        distributed.start("cuda")


def test_alone_there_is_no_group():
    world = distributed.start("cpu")
    assert (world.rank, world.size, world.group, world.is_main) == (0, 1, None, True)


def test_more_processes_than_gpus_are_told(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    for name, value in (("RANK", "2"), ("LOCAL_RANK", "2"), ("WORLD_SIZE", "3")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="LOCAL_RANK must be below 2, the number of GPUs.*got 2"):
        distributed.start()
