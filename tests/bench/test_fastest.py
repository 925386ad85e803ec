# SPDX-License-Identifier: Apache-2.0
"""The table of faster backends: what results make of it, and that the committed one is so."""

import json

from bench import fastest
from pipa_fast.ops import _fastest

ROW = {
    "op": "pixel_contrast",
    "variant": "negatives",
    "device": "GPU 1",
    "dtype": "bfloat16",
    "d": 256,
    "n": 4096,
    "mode": "both",
    "status": "ok",
    "commit": "abc",
}


def write(path, *rows):
    path.write_text("".join(json.dumps(ROW | row) + "\n" for row in rows))
    return path


def timed(contender, ms, **more):
    return {"contender": contender, "p50_ms": ms} | more


def test_the_faster_of_both_is_written(tmp_path):
    one = write(
        tmp_path / "1.json",
        timed("triton", 2.0),
        timed("triton", 0.1, mode="forward"),
        timed("cuda", 1.5),
        timed("eager", 0.5),
        timed("triton", 1.0, n=1024),
        timed("cuda", 1.5, n=1024),
        timed("triton", 1.0, n=512),  # alone
        timed("triton", 1.0, n=2048),
        {"contender": "cuda", "n": 2048, "status": "wrong: value 1e-1"},
        timed("triton", 1.0, n=256, d=100),
        timed("cuda", 2.0, n=256, d=100),
        timed("triton", 1.0, n=256, variant="all"),
        timed("cuda", 2.0, n=256, variant="all"),
    )
    two = write(tmp_path / "2.json", timed("triton", 7.0), timed("cuda", 8.0), {"op": "step"})
    made = fastest.table([one])
    assert [(row["n"], row["backend"]) for row in made] == [(1024, "triton"), (4096, "cuda")]
    assert made[1] == {
        "op": "pixel_contrast", "chip": "GPU 1", "dtype": "bfloat16", "d": 256, "n": 4096,
        "commit": "abc", "ms": {"triton": 2.0, "cuda": 1.5}, "backend": "cuda",
    }  # fmt: skip
    assert [row["backend"] for row in fastest.table([two, one])] == ["triton", "triton"]
    fastest.main([str(one), "--output", str(tmp_path / "made.json")])
    assert json.loads((tmp_path / "made.json").read_text()) == made


def test_the_committed_table_is_that_of_the_committed_results():
    made = fastest.table(fastest.RESULTS.glob("*/*.json"))
    assert fastest.text(made) == _fastest.FILE.read_text(), "run python -m bench.fastest"
