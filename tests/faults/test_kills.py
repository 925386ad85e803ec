# SPDX-License-Identifier: Apache-2.0
"""A run that is killed at any moment goes on to the same bytes. `make faults` kills 200."""

import subprocess
import sys

import pytest


def killed(count, seed):
    command = [sys.executable, "-m", "tests.faults.kills", "--count", count, "--seed", seed]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()[-1]


def test_kills_at_random_moments():
    assert killed(10, 5) == "survived 10 of 10 kills"


@pytest.mark.slow
def test_more_kills():
    assert killed(30, 6) == "survived 30 of 30 kills"
