# SPDX-License-Identifier: Apache-2.0
"""The CUDA C++ kernels compiled without a GPU: what each takes of its chip."""

import shutil

import pytest

from bench import cuda_table

USUAL = [("patch_consistency_512", 80), ("pixel_contrast_hopper_256", 90)]


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.parametrize(
    ("unit", "chip"),
    [
        pytest.param(unit, chip, marks=[] if (unit, chip) in USUAL else pytest.mark.slow)
        for chip in cuda_table.CHIPS
        for unit in cuda_table.units(chip)
    ],
)
def test_kernels_compile_and_spill_nothing(unit, chip, tmp_path):
    rows = cuda_table.compile_unit(unit, chip, tmp_path)
    assert rows and [row for row in rows if row["fault"]] == []


def test_a_fault_is_named():
    fine = {"kernel": "k", "spills": 0, "stack": 0, "blocks": 1, "tensor_cores": "HMMA"}
    assert cuda_table.fault(fine) == ""
    hopper = fine | {"kernel": "hopper_k", "cluster": 1}
    assert "not HGMMA" in cuda_table.fault(hopper)
    copied = hopper | {"tensor_cores": "HGMMA UTMALDG"}
    assert cuda_table.fault(copied) == ""
    assert "not HGMMA MULTICAST" in cuda_table.fault(copied | {"cluster": 2})
    starved = copied | {"pool": 128 * 504, "threads": 384, "registers": 160}
    assert "wait for more" in cuda_table.fault(starved)
    assert cuda_table.fault(starved | {"registers": 168}) == ""
    for change in ({"spills": 4}, {"stack": 16}, {"blocks": 0}, {"tensor_cores": ""}):
        assert cuda_table.fault(fine | change)
