# SPDX-License-Identifier: Apache-2.0
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PINS = ["torch==2.13.0", "numpy==2.4.6", "triton==3.9.0", "setuptools==84.2.1"]


@pytest.fixture
def pins_beside(tmp_path):
    """Returns what is printed where a torch of a version asks for this."""
    (tmp_path / "constraints.txt").write_text("\n".join(PINS))

    def printed(version: str, *asks: str) -> list[str]:
        about = tmp_path / f"torch-{version}.dist-info" / "METADATA"
        about.parent.mkdir()
        lines = ["Metadata-Version: 2.1", "Name: torch", f"Version: {version}"]
        about.write_text("\n".join(lines + [f"Requires-Dist: {ask}" for ask in asks]))
        command = [sys.executable, "-m", "bench.pins", str(tmp_path / "constraints.txt")]
        found = os.environ | {"PYTHONPATH": str(tmp_path)}
        done = subprocess.run(command, cwd=ROOT, env=found, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    return printed


def test_a_torch_for_gpus_keeps_its_triton_and_setuptools(pins_beside):
    # what torch 2.12.0 of the package index asks for
    found = pins_beside("2.12.0", "setuptools<82", 'triton==3.7.0; platform_system == "Linux"')
    assert found == ["torch==2.12.0", "numpy==2.4.6"]


def test_what_torch_admits_stays_pinned(pins_beside):
    others = ['triton==1; platform_system == "Elsewhere"', 'numpy<1; extra == "old"']
    assert pins_beside("2.13.0+cpu", "setuptools>=77.0.3", *others) == PINS


def test_without_requirements_all_pins_stay(pins_beside):
    assert pins_beside("2.13.0") == PINS
