# SPDX-License-Identifier: Apache-2.0
"""Disks that are full, become read-only or go: real ones, small and in memory."""

import json
import os
import re
import subprocess
import sys

import pytest

UNSHARE = ["unshare", "--map-root-user", "--mount"]


def allowed() -> bool:
    """Whether this machine lets us mount in a namespace of our own."""
    try:
        return subprocess.run([*UNSHARE, "mount", "-t", "tmpfs", "none", "/mnt"]).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not allowed(), reason="needs unshare(1), and the right to mount a tmpfs by it")
@pytest.mark.parametrize(
    ("how", "before", "said"),
    [
        ("full", 2, "step 4 could not be written .*No space left.*Make room there"),
        ("readonly", 2, "Read-only file system"),
        pytest.param("readonly at start", None, "Read-only file system", marks=pytest.mark.slow),
        pytest.param(
            "vanished", 2, "No such file or directory: .*streets_source", marks=pytest.mark.slow
        ),
    ],
)
def test_a_disk_that_fails_costs_no_checkpoint(tmp_path, how, before, said):
    command = [*UNSHARE, sys.executable, "-m", "tests.faults.disks", how, str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == [5, before, 0]
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert re.search(said, error), error
    assert "Traceback" not in done.stderr
