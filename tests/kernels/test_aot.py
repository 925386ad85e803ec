# SPDX-License-Identifier: Apache-2.0
"""Kernels compile for GPUs without one, spill no register, and fit the chip's shared memory."""

import json
import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton")
from bench import aot
from pipa_fast.kernels import _launch, pixel_contrast


def compile_ahead(*options):
    """Rows of `python -m bench.aot`, in a process that does not make kernels to be interpreted."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "bench.aot", "--jobs", "1", *map(str, options)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode in (0, 1), done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == any(row["fault"] for row in found)
    return found


# Kernels that multiply no matrices, or in float32 whatever the features are.
PLAIN = {
    "sort_rows_kernel",
    "finish_kernel",
    "tile_sums_kernel",
    "class_cosines_kernel",
    "class_pull_kernel",
    "_finish",
}
CONTRASTS = ("pixel_contrast", "patch_consistency")
# Those of an op that matter most, where all would take minutes.
USUAL = {"pixel_contrast": ["sum_apart_kernel", "pull_apart_kernel"]}


def check(found):
    assert found
    assert [row for row in found if row["fault"]] == []
    for row in found:
        products = row["tensor_cores"]
        if row["op"] in ("upsampled_cross_entropy", "pseudo_labels"):
            assert not products
        elif row["dtype"] != "float32" and row["kernel"] not in PLAIN:
            assert "MMA" in products, row


@pytest.mark.parametrize(
    "op", [pytest.param(op, marks=[] if op in CONTRASTS else pytest.mark.slow) for op in aot.CALLS]
)
@pytest.mark.parametrize(
    "chip, dtype", [(90, "bfloat16"), pytest.param(89, "float16", marks=pytest.mark.slow)]
)
def test_usual_depth(op, chip, dtype):
    some = ["--kernels", *USUAL[op]] if op in USUAL else []
    check(compile_ahead(op, "--chips", chip, "--dims", 256, "--dtypes", dtype, *some))


@pytest.mark.slow
@pytest.mark.tiles
@pytest.mark.parametrize("op", aot.CALLS)
@pytest.mark.parametrize("chip", aot.CHIPS)
@pytest.mark.parametrize("dtype", aot.FORMATS)
def test_every_shipped_tile(op, chip, dtype):
    check(compile_ahead(op, "--chips", chip, "--dtypes", dtype))


def test_more_rows_take_no_other_kernels(monkeypatch):
    """What is compiled for 8,192 rows is what computes more of them too."""

    def forms(n):
        found = set()
        monkeypatch.setattr(
            _launch, "launch", lambda *given, **named: found.add((given[0], repr(named)))
        )
        x, labels, settings = torch.zeros(n, 64), torch.arange(n) % 16, (0.1, "negatives", 255)
        _, z, u = pixel_contrast.forward(x.bfloat16(), labels, None, *settings)
        pixel_contrast.backward(torch.ones(()), x.bfloat16(), labels, None, z, u, *settings)
        return found

    assert forms(65536) == forms(8192)


def test_faults_are_told():
    row = aot.Row("op", "kernel", 89, 64, "float16", (64, 64, 4, 2), 128, 0, 99 * 1024, "1 HMMA")
    limits = _launch.SHARED_MEMORY
    assert row.fault(limits) == ""
    assert "spills (2" in row._replace(spills=2).fault(limits)
    assert "wants 101377 bytes" in row._replace(shared=99 * 1024 + 1).fault(limits)
    assert row._replace(shared=99 * 1024 + 1, chip=90).fault(limits) == ""


def test_table_is_written():
    row = aot.Row("op", "kernel", 89, 64, "float16", (64, 32, 4, 2), 128, 0, 99 * 1024, "1 HMMA")
    form = row._replace(registers=90, tensor_cores="2 HGMMA")
    other = row._replace(op="other", chip=90, spills=3, tensor_cores="")
    lines = aot.markdown([form, row, other]).splitlines()
    cells = "64×32 w4 s2: 128 registers, 99 KiB, HGMMA, HMMA"
    assert f"| kernel | 64 | float16 | {cells} |  |" in lines
    cells = "64×32 w4 s2: 128 registers, 99 KiB, **3 spills**"
    assert f"| kernel | 64 | float16 |  | {cells} |" in lines
    assert "## op" in lines and "## other" in lines


def test_rows_of_the_table_are_shared():
    row = aot.Row("op", "kernel", 89, 64, "float16", (64, 32, 4, 2), 128, 0, 1024, "1 HMMA")
    found = [row._replace(dim=dim) for dim in (64, 128)]
    found += [row._replace(dim=dim, dtype="bfloat16", registers=130) for dim in (64, 128)]
    found += [row._replace(dtype="float32", tensor_cores=""), row._replace(dim=256)]
    assert aot.markdown(found).splitlines()[-3:] == [
        "| kernel | 64, 128 | bfloat16, float16 | 64×32 w4 s2: 130 registers, 1 KiB, HMMA |",
        "| kernel | 64 | float32 | 64×32 w4 s2: 128 registers, 1 KiB |",
        "| kernel | 256 | float16 | 64×32 w4 s2: 128 registers, 1 KiB, HMMA |",
    ]
