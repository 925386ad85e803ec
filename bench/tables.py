# SPDX-License-Identifier: Apache-2.0
"""A bench's rows as a person reads them: a table, and how much faster ours is than whom.

python -m bench.tables rows.json [more.json]      # the same again, as Markdown
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from bench.rows import load

CAPTION = (
    "x mm: time in units of one torch.mm of that size; of mm: useful FLOP/s beside its\n"
    "spread: (p80 - p20) / p50; extra: peak memory of forward and backward [MB]\n"
    "error: the larger relative one of value and gradient, against float64"
)
NUMBERS = ("ms", "spread", "x mm", "GF/s", "of mm", "extra", "error")


def number(value: float | None, form: str, scale: float = 1.0) -> str:
    """Return a number as text, "" for none."""
    return "" if value is None else format(value * scale, form)


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Return the rows of one problem as a table."""
    made = Table(title=heading(rows[0]), caption=CAPTION, box=SIMPLE, padding=(0, 1, 0, 0))
    for column in ("contender", "mode"):
        made.add_column(column, no_wrap=True)
    for column in NUMBERS:
        made.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        if row["status"] != "ok":
            made.add_row(row["contender"], "left out")  # why stands below, where there is room
            continue
        errors = [row.get(key) for key in ("value_error", "grad_error")]
        worst = max((e for e in errors if e is not None), default=None)
        made.add_row(
            row["contender"],
            row["mode"],
            number(row["p50_ms"], ".2f"),
            number((row["p80_ms"] - row["p20_ms"]) / row["p50_ms"], ".0%"),
            number(row["products"], ".2f"),
            number(row["gflops"], ".1f"),
            number(row["fraction"], ".0%") if (row["fraction"] or 0) < 10 else "",
            number(row.get("peak_bytes"), ".1f", 1e-6),
            number(worst, ".0e"),
        )
    return made


def heading(row: dict[str, Any]) -> str:
    """Return what a problem is, in one line."""
    shape = " x ".join(str(row[key]) for key in ("n", "m", "d") if row[key] is not None)
    parts = [row["op"], row["variant"], shape, row["dtype"]]
    return ", ".join(part for part in parts if part)


def comparisons(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return lines that put each of ours beside the product and the peers, and say who failed."""
    timed = {(r["contender"], r["mode"]): r for r in rows if r["status"] == "ok"}
    modes = ("graph", "both") if any(mode == "both" for _, mode in timed) else ("forward",)
    only = len({r["contender"] for r in rows if r["ours"]}) == 1
    lines = []
    for (name, mode), row in timed.items():
        if not row["ours"] or mode not in modes or (name == "reference" and not only):
            continue
        others = [
            r for (who, m), r in timed.items() if m == mode and who != name and m != "product"
        ]
        lines.append(f"{name}, {mode}:")
        if row["products"] is not None:
            forward = timed.get((name, "forward"), row)["products"]
            lines[-1] += f" {row['products']:.2f} x one torch.mm (forward {forward:.2f})"
        faster = [f"{r['contender']} {r['p50_ms'] / row['p50_ms']:.1f}" for r in others]
        if faster:
            lines.append(f"  times as fast as: {', '.join(faster)}")
        own = row.get("peak_bytes")
        less = [
            f"{r['contender']} {r['peak_bytes'] / own:.1f}"
            for r in others
            if own and r.get("peak_bytes")
        ]
        if less:
            lines.append(f"  times less memory than: {', '.join(less)}")
        if "operators" in row:
            counts = [f"{r['contender']} {r['operators']}, {r['waits']}" for r in (row, *others)]
            lines.append(f"  operators called, and waits for them: {'; '.join(counts)}")
    return lines + [f"{r['contender']}: {r['status']}" for r in rows if r["status"] != "ok"]


def problems(rows: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Return the rows of each problem."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(heading(row), []).append(row)
    return list(found.values())


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows of one problem as Markdown."""
    lines = [
        f"**{heading(rows[0])}**",
        "",
        "| contender | ms | p20 to p80 | products | of mm | MB |",
    ]
    lines.append("|---|---|---|---|---|---|")
    for row in rows:
        if row["status"] != "ok":
            lines.append(f"| {row['contender']} | {row['status']} | | | | |")
            continue
        cells = [
            f"{row['contender']}, {row['mode']}",
            f"{row['p50_ms']:.3g}",
            f"{row['p20_ms']:.3g} to {row['p80_ms']:.3g}",
            number(row["products"], ".2f"),
            number(row["fraction"], ".0%"),
            number(row.get("peak_bytes"), ".1f", 1e-6),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"- {line.strip()}" for line in comparisons(rows)), ""])


def main() -> None:
    """Print the rows of the files that are named."""
    for members in problems(load([Path(path) for path in sys.argv[1:]])):
        print(markdown(members))


if __name__ == "__main__":
    main()
