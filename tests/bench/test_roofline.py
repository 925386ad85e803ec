# SPDX-License-Identifier: Apache-2.0
"""The roofline's picture, what stands in it, and the bandwidth it needs. No time is tested."""

import json
import re

import pytest

import bench.__main__ as command
from bench import roofline
from bench.roofline import Roof, intensity, panels
from bench.rows import load, write

WHERE = {"device": "a", "cpu_flags": "fma avx2", "threads": 2, "torch": "2", "commit": "c"}
PIXEL = {"op": "pixel_contrast", "variant": "all", "dtype": "float32", "n": 512, "m": 512, "d": 64}
FLOP = 6 * 512 * 512 * 64
OURS = {"contender": "cpu", "title": "ours", "ours": True, "mode": "both", "status": "ok"}
MM = {"contender": "torch.mm", "title": "one torch.mm", "ours": False, "mode": "product"}
MEMORY = {"op": "bandwidth", "variant": "copy", "gbytes": 10.0, "status": "ok"}


def row(**changes):
    return WHERE | PIXEL | OURS | {"flop": FLOP, "gflops": 100.0} | changes


def product(**changes):
    return row(**(MM | {"flop": FLOP // 3, "product_dtype": "float32"} | changes))


def test_commands_measure_and_draw(tmp_path, capsys):
    """From nothing to the picture, at tiny sizes."""
    rows, memory, picture = (tmp_path / name for name in ("rows.json", "memory.json", "new/r.png"))
    quick = ["--device", "cpu", "--seconds", "0", "--warmup", "0", "--repeats", "2", "--no-memory"]
    words = ["pixel_contrast", "patch_consistency", "gather_pixels", "--sizes", "64", "--dims", "8"]
    command.main([*words, *quick, "--peers", "none", "--json", str(rows)])
    words = ["bandwidth", "--device", "cpu", "--seconds", "0", "--mebibytes", "1"]
    command.main([*words, "--json", str(memory)])
    assert {r["variant"]: r["bytes"] for r in load([memory])} == {
        "copy": 2 * 2**20,
        "triad": 3 * 2**20,
    }
    for found in load([memory]):
        assert found["gbytes"] == pytest.approx(found["bytes"] / found["p50_ms"] * 1e-6)
    command.main(["roofline", str(rows), str(memory), "--output", str(picture)])
    assert picture.read_bytes().startswith(b"\x89PNG")
    titles = [title.split(",")[0].split("\n")[0] for title in panels(load([rows]))]
    assert titles == ["pixel_contrast", "patch_consistency"]
    assert str(picture) in capsys.readouterr().out


def test_intensity_is_useful_work_by_least_traffic():
    assert intensity(row()) == FLOP / (2 * 512 * 64 * 4 + 512 * 8)
    assert intensity(row(dtype="bfloat16")) == FLOP / (2 * 512 * 64 * 2 + 512 * 8)
    patch = row(op="patch_consistency", m=256)
    assert intensity(patch) == FLOP / ((3 * 512 + 256) * 64 * 4 + 8 * (512 + 256))
    assert intensity(product()) == FLOP // 3 / ((2 * 512 * 64 + 512 * 512) * 4)


def test_what_has_no_place_is_left_out():
    for found in (
        row(status="out of memory"),
        row(mode="forward"),
        row(mode="graph"),
        row(flop=None),
        row(op="upsampled_cross_entropy", m=None),
    ):
        assert intensity(found) is None
    assert panels([product(), row(mode="backward"), WHERE | MEMORY]).keys() == {
        "pixel_contrast, all\nD = 64, float32"
    }


def test_roof_is_the_lower_bound_of_two():
    roof = Roof(gflops=100.0, gbytes=10.0)
    assert [roof.at(x) for x in (1.0, 10.0, 1000.0)] == [10.0, 100.0, 100.0]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([product(), row()], "FILES must hold rows of memory; got none: python -m bench bandwidth"),
        ([WHERE | MEMORY], "FILES must hold timed rows"),
        ([row(), WHERE | MEMORY], "each run's torch.mm; got none of pixel_contrast, all, D = 64"),
        (
            [product(), row(), WHERE | MEMORY | {"device": "b"}],
            "of one machine; got a (avx2",
        ),
        ([product(), WHERE | MEMORY | {"threads": 1}], "of one machine"),
    ],
)
def test_files_that_do_not_do_are_told(rows, message, tmp_path, capsys):
    file = tmp_path / "rows.json"
    write(file, rows)
    with pytest.raises(SystemExit):
        roofline.main([str(file), "--output", str(tmp_path / "r.png")])
    assert message in re.sub(r"\s+", " ", capsys.readouterr().err)


def test_a_missing_file_is_told(tmp_path, capsys):
    with pytest.raises(SystemExit):
        roofline.main([str(tmp_path / "none.json")])
    assert "FILES must exist" in capsys.readouterr().err


def test_flags_in_another_order_are_the_same_machine(tmp_path):
    file, picture = tmp_path / "rows.json", tmp_path / "r.svg"
    write(file, [product(), row(cpu_flags="avx2 fma"), WHERE | MEMORY])
    roofline.main([str(file), "--output", str(picture)])
    assert picture.read_text().rstrip().endswith("</svg>")


def test_results_lie_where_save_puts_them():
    from bench.rows import results_folder

    where = WHERE | {"device": "AMD EPYC"}
    assert results_folder(where, gpu=False).name == "AMD_EPYC_avx2"
    assert results_folder(where, gpu=True).name == "AMD_EPYC"
    assert json.loads((results_folder(where, gpu=False) / "pixel_contrast.json").open().readline())
