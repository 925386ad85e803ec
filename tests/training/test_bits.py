# SPDX-License-Identifier: Apache-2.0
"""Ten fresh processes, half of them stopped and resumed, end with the same bytes."""

import hashlib
import os
import signal
import subprocess
import sys

import pytest
from safetensors import safe_open

SMALL = ["--iterations", "400", "--run.log_every", "100", "--run.eval_every", "1000"]
SMALL += ["--run.report", "false", "--run.checkpoint_every", "1000", "--run.resume", "auto"]
SMALL += ["--data.crop", "[32, 32]", "--data.patch_crop", "[32, 32]", "--data.batch_size", "2"]
SMALL += ["--adaptation.mixed.threshold", "0.5", "--adaptation.patch.confidence_threshold", "0.3"]
SMALL += ["--adaptation.patch.bank_confidence", "0.3", "--adaptation.patch.start", "0"]
SMALL += ["--adaptation.patch.ramp", "0"]


def start(folder):
    command = [sys.executable, "-u", "-m", "pipa_fast.train", "--config", "streets_pipa", *SMALL]
    command += ["--run.dir", str(folder)]
    # two threads: sums that threads share must not depend on who comes first
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "2"}
    )


def digest(folder):
    path = folder / "streets_pipa" / "model.safetensors"
    assert safe_open(path, "pt").keys()
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.slow
def test_two_hundred_and_two_hundred_steps_are_four_hundred(tmp_path):
    digests = set()
    for attempt in range(10):
        folder = tmp_path / str(attempt)
        process = start(folder)
        assert process.stdout is not None
        if attempt % 2:
            for line in process.stdout:
                if line.startswith("step    200"):
                    process.send_signal(signal.SIGINT)
                    break
            process.communicate(timeout=600)
            assert process.returncode == 130
            process = start(folder)
        process.communicate(timeout=600)
        assert process.returncode == 0
        digests.add(digest(folder))
    assert len(digests) == 1
