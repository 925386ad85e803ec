# SPDX-License-Identifier: Apache-2.0
"""Which backend was measured to be the fastest, by op, GPU, dtype, D and N.

`fastest.json` holds it, written by `python -m bench.fastest` from the committed results. What it
does not hold goes to the first of an op's table that can run.
"""

import functools
import json
from itertools import pairwise
from math import isqrt
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("fastest.json")
WIDTHS = (64, 128, 256, 512)
"""Classes of D, each up to its number from that of the one before."""


@functools.cache
def rows() -> list[dict[str, Any]]:
    """Return what was measured: op, chip (the GPU's name), dtype, d, n, backend, and ms of each."""
    return json.loads(FILE.read_text())


@functools.cache
def measured(op: str, chip: str, dtype: str) -> tuple[tuple[int, int, int, int, str], ...]:
    """Return (above d, to d, from n, below n, backend) of an op's problems on a GPU.

    A size stands for all within a factor of two, and where two do, each for its nearer ones.
    """
    found = []
    for narrower, width in zip((0, *WIDTHS), WIDTHS, strict=False):
        key = (op, chip, dtype, width)
        mine = [r for r in rows() if (r["op"], r["chip"], r["dtype"], r["d"]) == key]
        mine.sort(key=lambda r: r["n"])
        sizes = [r["n"] for r in mine]
        limits = [0, *(isqrt(a * b) for a, b in pairwise(sizes)), 2**62]
        for row, (low, high) in zip(mine, pairwise(limits), strict=False):
            span = max(low, row["n"] // 2), min(high, 2 * row["n"])
            found.append((narrower, width, *span, row["backend"]))
    return tuple(found)
