# SPDX-License-Identifier: Apache-2.0
"""A bench's rows as a person reads them: a table, and how much faster ours is than whom."""

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

CAPTION = (
    "products: time in units of one torch.mm of that size; of mm: useful FLOP/s beside torch.mm's\n"
    "spread: (p80 - p20) / p50; extra: peak memory of forward and backward together [MB]\n"
    "error: the larger relative one of value and gradient, against float64"
)
NUMBERS = ("ms", "spread", "products", "GFLOP/s", "of mm", "extra", "error")


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
            # The reason stands below: here it would widen a column of numbers.
            made.add_row(row["contender"], "", row["status"].split(":")[0])
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
    """Return lines that put each of ours beside the product and each peer, and name who failed."""
    lines = []
    timed = {(r["contender"], r["mode"]): r for r in rows if r["status"] == "ok"}
    modes = ("graph", "both") if any(mode == "both" for _, mode in timed) else ("forward",)
    for (name, mode), row in timed.items():
        if not row["ours"] or mode not in modes:
            continue
        parts = []
        if row["products"] is not None:
            parts.append(f"{row['products']:.2f} x one torch.mm")
        for (peer, other), theirs in timed.items():
            if peer != name and other == mode and other != "product":
                ratio = theirs["p50_ms"] / row["p50_ms"]
                parts.append(f"{ratio:.2f} x faster than {peer}{memory_ratio(theirs, row)}")
        lines.append(f"{name}, {mode}: " + ("; ".join(parts) or "nothing to compare with"))
    lines += [f"{r['contender']}: {r['status']}" for r in rows if r["status"] != "ok"]
    return lines


def memory_ratio(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """Return how much more memory they take, where both are known."""
    if not theirs.get("peak_bytes") or not ours.get("peak_bytes"):
        return ""
    return f" ({theirs['peak_bytes'] / ours['peak_bytes']:.1f} x the memory)"
