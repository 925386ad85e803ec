# SPDX-License-Identifier: Apache-2.0
"""Kernels compile for GPUs without one, spill no register, and fit the chip's shared memory."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")
from bench import aot
from pipa_fast.kernels import _launch


def compile_ahead(*options):
    """Rows of `python -m bench.aot`, in a process that does not make kernels to be interpreted."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "bench.aot", *map(str, options)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode in (0, 1), done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == any(row["fault"] for row in found)
    return found


def check(found):
    assert found
    assert [row for row in found if row["fault"]] == []
    for row in found:
        products = row["tensor_cores"]
        if row["dtype"] == "float32" or "pack" in row["kernel"]:
            continue
        if row["op"] in ("upsampled_cross_entropy", "pseudo_labels"):
            assert not products
        elif products or "finish" not in row["kernel"]:
            hopper = row["chip"] == 90 and row["tile"][0] >= 64
            assert ("HGMMA" if hopper else "HMMA") in products, row


@pytest.mark.parametrize("op", aot.CALLS)
@pytest.mark.parametrize("chip, dtype", [(90, "bfloat16"), (89, "float16")])
def test_usual_depth(op, chip, dtype):
    check(compile_ahead(op, "--chips", chip, "--dims", 256, "--dtypes", dtype))


@pytest.mark.slow
@pytest.mark.parametrize("op", aot.CALLS)
@pytest.mark.parametrize("chip", aot.CHIPS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_every_shipped_tile(op, chip, dtype):
    check(compile_ahead(op, "--chips", chip, "--dtypes", dtype))


def test_faults_are_told():
    row = aot.Row("op", "kernel", 89, 64, "float16", (64, 64, 4, 2), 128, 0, 99 * 1024, "1 HMMA")
    limits = _launch.SHARED_MEMORY
    assert row.fault(limits) == ""
    assert "spills (2" in row._replace(spills=2).fault(limits)
    assert "wants 101377 bytes" in row._replace(shared=99 * 1024 + 1).fault(limits)
    assert row._replace(shared=99 * 1024 + 1, chip=90).fault(limits) == ""


def test_table_is_written():
    row = aot.Row("op", "kernel", 89, 64, "float16", (64, 32, 4, 2), 128, 0, 99 * 1024, "1 HMMA")
    text = aot.markdown([row, row._replace(op="other", tensor_cores="")])
    line = "| kernel | sm_89 | 64 | float16 | 64×32, 4, 2 | 128 | 0 | 99 | 1 HMMA |"
    assert line in text.splitlines()
    assert "## op" in text and "## other" in text and "| none |" in text
