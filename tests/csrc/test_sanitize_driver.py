# SPDX-License-Identifier: Apache-2.0
"""The driver of `make sanitize`, without sanitizers: it compiles, and every kernel passes it."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DRIVER = ROOT / "tests/csrc/sanitize_driver.cpp"
OPS = [
    "pixel_contrast",
    "pixel_contrast_ranks",
    "patch_consistency",
    "upsampled_cross_entropy",
    "pseudo_labels",
]


@pytest.fixture
def compiler():
    """The command that compiles C++."""
    name = os.environ.get("CXX", "c++")
    if shutil.which(name) is None:
        pytest.skip(f"no {name}")
    return [name, "-std=c++17", "-Wall", "-Werror", "-pthread", f"-I{ROOT / 'csrc'}"]


def test_driver_compiles(compiler):
    subprocess.run([*compiler, "-fsyntax-only", DRIVER], check=True)


@pytest.mark.slow
def test_every_kernel_passes(compiler, host, tmp_path):
    kernels = sorted((ROOT / "csrc/cpu").glob("*.cpp"))
    subprocess.run([*compiler, "-O1", DRIVER, *kernels, "-o", tmp_path / "driver"], check=True)
    result = subprocess.run([tmp_path / "driver"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    ran = [line.split(":")[0] for line in result.stdout.splitlines()]
    isas = [isa for isa in host.compiled()["isa"] if host.cpu_features()[isa]]
    assert ran == [f"{op} {isa}" for op in OPS for isa in isas]
