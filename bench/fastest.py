# SPDX-License-Identifier: Apache-2.0
"""Writes which GPU backend is the faster one for which problems, from rows of `python -m bench`.

python -m bench.fastest                       # of bench/results, to pipa_fast/ops/fastest.json
python -m bench.fastest rows.json --output here.json

Only problems where both were right and timed count, by the median of forward and backward, in the
op's first form and at the widths that stand for their classes. Times are compared within a file;
where two files hold a problem, the one later by name counts.
"""

import json
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from bench.problem import OPS
from bench.program import make_parser
from bench.rows import RESULTS, load
from pipa_fast.ops import _fastest

BACKENDS = ("triton", "cuda")
KEY = ("op", "chip", "dtype", "d", "n")


def times(rows: Iterable[dict[str, Any]]) -> dict[tuple, dict[str, Any]]:
    """Return the row to write for each problem of a file's rows."""
    found: dict[tuple, dict[str, Any]] = {}
    for row in rows:
        if row.get("op") not in OPS or row.get("contender") not in BACKENDS:
            continue
        form = import_module(f"bench.{row['op']}").VARIANTS[0]
        timed = row["status"] == "ok" and row["mode"] == "both"
        if not timed or row["variant"] != form or row["d"] not in _fastest.WIDTHS:
            continue
        made = {"op": row["op"], "chip": row["device"]} | {k: row[k] for k in KEY[2:]}
        made |= {"commit": row["commit"], "ms": {}}
        ms = found.setdefault(tuple(made[k] for k in KEY), made)["ms"]
        ms[row["contender"]] = row["p50_ms"]
    return {
        key: row | {"backend": min(row["ms"], key=row["ms"].__getitem__)}
        for key, row in found.items()
        if len(row["ms"]) == len(BACKENDS)
    }


def table(files: Iterable[Path]) -> list[dict[str, Any]]:
    """Return all rows to write, in order."""
    found: dict[tuple, dict[str, Any]] = {}
    for path in sorted(files):
        found |= times(load([path]))
    return [row for _, row in sorted(found.items())]


def text(rows: Sequence[dict[str, Any]]) -> str:
    """Return the file: a row a line."""
    lines = ",\n".join(json.dumps(row) for row in rows)
    return f"[\n{lines}\n]\n" if rows else "[]\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = make_parser("bench.fastest", __doc__)
    parser.add_argument("files", nargs="*", type=Path, help="default: bench/results/*/*.json")
    parser.add_argument("--output", type=Path, default=_fastest.FILE)
    args = parser.parse_args(argv)
    rows = table(args.files or RESULTS.glob("*/*.json"))
    args.output.write_text(text(rows))
    print(f"{len(rows)} problems -> {args.output}")


if __name__ == "__main__":
    main()
