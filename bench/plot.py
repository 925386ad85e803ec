# SPDX-License-Identifier: Apache-2.0
"""Draws time and memory against n, log-log, every contender.

python -m bench.plot bench/results/DEVICE/pixel_contrast.json --output picture.png
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from bench.program import make_parser
from bench.rows import load

# Name: colour, marker. Ours are blue and thick.
STYLES = {
    "cpu": ("#1f5fa8", "o"),
    "triton": ("#1f5fa8", "o"),
    "cuda": ("#0b2f66", "D"),
    "reference": ("#6fa8dc", "s"),
    "eager": ("#c0392b", "^"),
    "compile": ("#e67e22", "v"),
    "chunked": ("#8e6c3a", "P"),
    "metric_learning": ("#8e44ad", "p"),
    "flex_attention": ("#27885a", "d"),
    "keops": ("#d6578f", "h"),
    "torch.mm": ("#444444", ""),
}
OTHER = ("#888888", ".")


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write a picture: for each op, form, dtype and width a row of two panels, time and memory."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        key = (row["op"], row["variant"], row["dtype"], row["d"])
        groups.setdefault(key, []).append(row)
    size = (8, 3.1 * len(groups) + 1.0)
    figure = Figure(figsize=size, dpi=200)
    grid = figure.subplots(len(groups), 2, squeeze=False)
    for axes, (key, members) in zip(grid, groups.items(), strict=True):
        op, variant, dtype, d = key
        title = ", ".join(part for part in (op, variant, f"D = {d}", dtype) if part)
        draw(axes[0], members, time_of(members), "forward + backward [ms]", title)
        draw(axes[1], members, memory_of(members), "peak extra memory [MB]", "")
        if len({row["n"] for row in members}) > 2 and members[0]["m"] == members[0]["n"]:
            slope(axes[0], 2, "N²")
            slope(axes[1], 1, "N")
    found: dict[str, Any] = {}
    for axes in grid.flat:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    for axes in grid[-1]:
        axes.set_xlabel("rows N" if rows[0]["m"] is not None else "side of the labels [pixels]")
    columns = 4 if len(found) > 6 else 3
    lines = -(-len(found) // columns)
    margin = 0.24 * lines + 0.36  # inches below the panels
    figure.legend(
        list(found.values()),
        list(found),
        loc="lower center",
        ncols=columns,
        frameon=False,
        fontsize=9,
        bbox_to_anchor=(0.5, 0.22 / size[1]),
    )
    facts = rows[0]
    caption = f"{facts['device']}, {facts['threads']} threads, torch {facts['torch']}"
    figure.text(
        0.5, 0.06 / size[1], f"{caption}, {facts['commit']}", ha="center", fontsize=7, color="#666"
    )
    figure.tight_layout(rect=(0, margin / size[1], 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, facecolor="white")


def time_of(rows: Sequence[dict[str, Any]]) -> dict[str, list[tuple[float, float, float, float]]]:
    """Return (n, p50, p20, p80) of each contender that was timed."""
    modes = {"both", "product"} if any(r["mode"] == "both" for r in rows) else {"forward"}
    found: dict[str, list[tuple[float, float, float, float]]] = {}
    for row in rows:
        if row["status"] == "ok" and row["mode"] in modes:
            point = (row["n"], row["p50_ms"], row["p20_ms"], row["p80_ms"])
            found.setdefault(row["contender"], []).append(point)
    return found


def memory_of(rows: Sequence[dict[str, Any]]) -> dict[str, list[tuple[float, float, float, float]]]:
    """Return (n, MB, MB, MB) of each contender whose memory was measured."""
    found: dict[str, list[tuple[float, float, float, float]]] = {}
    for row in rows:
        if row.get("peak_bytes"):
            size = row["peak_bytes"] * 1e-6
            found.setdefault(row["contender"], []).append((row["n"], size, size, size))
    return found


def draw(
    axes: Any,
    rows: Sequence[dict[str, Any]],
    points: dict[str, list[tuple[float, float, float, float]]],
    label: str,
    title: str,
) -> None:
    """Draw one panel; who ran out of memory gets a cross at the top, above its size."""
    titles = {row["contender"]: row["title"] for row in rows}
    ours = {row["contender"] for row in rows if row["ours"]}
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    for name, line in points.items():
        colour, marker = STYLES.get(name, OTHER)
        n, mid, low, high = (list(column) for column in zip(*sorted(line), strict=True))
        axes.fill_between(n, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(
            n,
            mid,
            color=colour,
            marker=marker,
            markersize=5,
            linewidth=2.2 if name in ours else 1.3,
            linestyle="--" if name == "torch.mm" else "-",
            label=titles[name],
            zorder=3 if name in ours else 2,
        )
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    mark_without_memory(axes, rows)
    sizes = sorted({row["n"] for row in rows})
    axes.set_xticks(sizes, [size_text(n) for n in sizes])
    axes.minorticks_off()
    axes.set_xlim(sizes[0] / 1.3, sizes[-1] * 1.3)
    axes.grid(True, which="major", color="#e4e4e4", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
    axes.set_ylabel(label, fontsize=9.5)
    axes.set_title(title, fontsize=10.5, loc="left")


def size_text(n: int) -> str:
    """Return a number of rows as text, in units of 1024 where it is a multiple."""
    return f"{n // 1024}k" if n % 1024 == 0 else str(n)


def slope(axes: Any, power: int, text: str) -> None:
    """Draw what growing as N to some power looks like, low at the right."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    end, start = right / 1.25, right / 1.25 / 4
    if start < left:
        return
    base = low * (high / low) ** 0.04
    line = [base, base * 4**power]
    axes.plot([start, end], line, color="#999", linewidth=1, linestyle=":", zorder=1)
    axes.text(start, line[0] * 1.1, text, fontsize=8, color="#777", ha="right", va="bottom")
    axes.set_ylim(low, high)


def mark_without_memory(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    """Put a cross above the curves at the first size at which a contender ran out of memory."""
    first: dict[str, int] = {}
    for row in rows:
        if row["status"].startswith("out of memory"):  # larger sizes need more
            first[row["contender"]] = min(row["n"], first.get(row["contender"], row["n"]))
    if not first:
        return
    levels: dict[int, list[str]] = {}
    for name, n in first.items():
        levels.setdefault(n, []).append(name)
    low, high = axes.get_ylim()
    room = 0.09 * max(map(len, levels.values()))  # of the panel, kept free for the crosses
    axes.set_ylim(low, high * (high / low) ** (room / (1 - room)))
    style = {"marker": "x", "linestyle": "", "markersize": 7, "markeredgewidth": 2}
    for n, names in levels.items():
        for level, name in enumerate(names):
            place = {"transform": axes.get_xaxis_transform(), "clip_on": False, "zorder": 5}
            colour = STYLES.get(name, OTHER)[0]
            axes.plot([n], [0.97 - 0.08 * level], color=colour, **style, **place)
    axes.plot([], [], color="#555", label="out of memory", **style)


def main() -> None:
    """Run the command line."""
    parser = make_parser("bench.plot", __doc__)
    parser.add_argument("json", type=Path, nargs="+", help="rows of `python -m bench --json`")
    parser.add_argument("--output", type=Path, required=True, help="the picture, .png or .svg")
    parser.add_argument("--dims", type=int, nargs="+", help="only these d")
    parser.add_argument("--variants", nargs="+", help="only these forms")
    args = parser.parse_args()
    rows = load(args.json)
    rows = [r for r in rows if args.dims is None or r["d"] in args.dims]
    rows = [r for r in rows if args.variants is None or r["variant"] in args.variants]
    if not rows:
        parser.error("no rows are left to draw")
    plot(rows, args.output)
    print(f"-> {args.output}")


if __name__ == "__main__":
    main()
