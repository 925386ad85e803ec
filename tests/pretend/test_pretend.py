# SPDX-License-Identifier: Apache-2.0
"""What needs a GPU for where its tensors lie, not for its kernels, runs on a pretended one."""

import os
import re
import shutil
import subprocess
import sys

import pytest
import torch

from tests.pretend.gpu import ROOT

pytestmark = [
    pytest.mark.skipif(
        bool(torch.version.cuda or torch.version.hip), reason="this torch is one for GPUs"
    ),
    pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler"),
]


def run(*words):
    """Run tests on the pretended GPU; all must pass, and none be skipped."""
    command = [sys.executable, "-m", "tests.pretend", "pytest", "-q", "-n0"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    ran = subprocess.run(
        [*command, "-p", "no:cacheprovider", *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-2000:]
    assert re.search(r"\d+ passed", ran.stdout) and " skipped" not in ran.stdout


def test_the_pretended_gpu_is_like_one():
    run("tests/pretend/test_device.py", "tests/pretend/test_ranks.py")


def test_training_on_a_gpu():
    waits = "tests/ops/test_waits.py::test_training_step_waits_for_nothing_on_a_gpu"
    run("tests/training/test_gpu.py", waits)


def test_ops_on_a_gpu():
    """By the reference, which is left without Triton; and without graphs, which only CUDA has."""
    left_out = ("many", "whole", "graph", "compiled", "current", "promises", "triton")
    run("tests/ops/test_gpu.py", "-k", " and ".join(f"not {word}" for word in left_out))
