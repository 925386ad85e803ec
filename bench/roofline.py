# SPDX-License-Identifier: Apache-2.0
"""`python -m bench roofline`: measured rates beside what the machine could give, as a picture.

python -m bench roofline                                  # of this machine's committed results
python -m bench roofline bench/results/DEVICE/{pixel_contrast,bandwidth}.json --output roof.png

FILES hold rows of `python -m bench` (--json, --save) and of `python -m bench bandwidth`, all of one
machine. A point is forward and backward of one contender at one size: its useful rate over useful
work for each byte that must cross memory, rows and labels in, gradient out, each once. The level
roof is the panel's fastest torch.mm, the slope the faster of copy and triad. Symmetry saves ours a
sixth of the useful work of pixel_contrast at least, so that its points may lie above the roof. What
a contender really moves is not measured: eager's N x N matrices are not in its place on the axis.
"""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure

from bench.machine import machine
from bench.plot import OTHER, STYLES, size_text
from bench.problem import DTYPES
from bench.program import make_parser
from bench.rows import load, results_folder

FAST = ("cpu", "triton", "cuda")  # whose sizes are written
NAMES = ("pixel_contrast", "patch_consistency", "bandwidth")


class Roof(NamedTuple):
    """What bounds a rate."""

    gflops: float  # of the fastest product [10^9 flop/s]
    gbytes: float  # of memory [10^9 bytes/s]

    def at(self, intensity: float) -> float:
        """Return the bound [10^9 flop/s] where so much work [flop] comes with each byte."""
        return min(self.gflops, self.gbytes * intensity)


def intensity(row: dict[str, Any]) -> float | None:
    """Return useful work of a row over its least traffic [flop/byte]; None where that isn't known.

    A product's traffic is that of torch.mm: both factors in, the product out.
    """
    if row["status"] != "ok" or not row.get("flop") or not row.get("m"):
        return None
    n, m, d = row["n"], row["m"], row["d"]
    if row["mode"] == "product":
        size = torch.finfo(DTYPES[row["product_dtype"]]).bits // 8
        return row["flop"] / ((n * d + m * d + n * m) * size)
    traffic = getattr(import_module(f"bench.{row['op']}"), "traffic", None)
    if row["mode"] != "both" or traffic is None:
        return None
    return row["flop"] / traffic(n, m, d, torch.finfo(DTYPES[row["dtype"]]).bits // 8)


def memory_of(rows: Sequence[dict[str, Any]]) -> float:
    """Return the measured bandwidth [10^9 bytes/s].

    Raises:
        ValueError: rows of several machines, or none of memory.
    """
    # the flags in one order: committed rows have both
    about = ((r["device"], sorted(r["cpu_flags"].split()), r["threads"]) for r in rows)
    places = sorted({f"{d} ({' '.join(flags)}, {threads} threads)" for d, flags, threads in about})
    if len(places) > 1:
        raise ValueError(f"FILES must be of one machine; got {', '.join(places)}")
    memory = [r["gbytes"] for r in rows if r["op"] == "bandwidth"]
    if not memory:
        raise ValueError(
            "FILES must hold rows of memory; got none: python -m bench bandwidth --json FILE"
        )
    return max(memory)


def panels(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the rows that have a place, with their `intensity`, by the title of their panel.

    Raises:
        ValueError: there are none, or no torch.mm is among a panel's.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["op"] == "bandwidth" or (x := intensity(row)) is None:
            continue
        form = f"{row['op']}, {row['variant']}" if row["variant"] else row["op"]
        title = f"{form}\nD = {row['d']}, {row['dtype']}"
        found.setdefault(title, []).append(row | {"intensity": x})
    if not found:
        raise ValueError("FILES must hold timed rows of pixel_contrast or patch_consistency")
    for title, members in found.items():
        if not any(row["mode"] == "product" for row in members):
            name = title.replace("\n", ", ")
            raise ValueError(f"FILES must hold each run's torch.mm; got none of {name}")
    return found


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write the picture, a panel for each op, form and width."""
    memory, groups = memory_of(rows), panels(rows)
    width = max(3.6 * len(groups), 5.0)
    figure = Figure(figsize=(width, 4.6), dpi=160)
    grid = figure.subplots(1, len(groups), squeeze=False, sharey=True)
    labels: dict[str, Any] = {}
    for axes, (title, members) in zip(grid[0], groups.items(), strict=True):
        product = max(row["gflops"] for row in members if row["mode"] == "product")
        panel(axes, title, members, Roof(product, memory))
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            labels.setdefault(label, handle)
    grid[0][0].set_ylabel("useful rate [GFLOP/s]", fontsize=9)
    columns = max(2, round(width / 2.6))
    figure.legend(
        list(labels.values()),
        list(labels),
        loc="lower center",
        ncols=columns,
        frameon=False,
        fontsize=8,
        bbox_to_anchor=(0.5, 0.05),
    )
    about = next(row for row in rows if row.get("mode") == "product")
    caption = f"{about['device']}, {about['threads']} threads, torch {about['torch']}"
    commits = ", ".join(dict.fromkeys(row["commit"] for row in rows))
    figure.text(0.5, 0.015, f"{caption}, {commits}", ha="center", fontsize=7, color="#666")
    lines = -(-len(labels) // columns)
    figure.tight_layout(rect=(0, 0.07 + 0.045 * lines, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, facecolor="white")


def panel(axes: Any, title: str, rows: Sequence[dict[str, Any]], roof: Roof) -> None:
    """Draw the roof, and a line through each contender's sizes; those of ours are written."""
    right = 2 * max(row["intensity"] for row in rows)
    ridge = roof.gflops / roof.gbytes
    ends = [ridge / 8, ridge, max(right, 8 * ridge)]
    axes.plot(ends, [roof.at(x) for x in ends], color="#222", linewidth=1.6, label="measured roof")
    small = {"fontsize": 7.5, "color": "#222"}
    text = f"torch.mm {roof.gflops:.0f} GFLOP/s"
    axes.text(ends[0], roof.gflops * 1.06, text, **small)
    text = f"memory {roof.gbytes:.0f} GB/s"
    axes.text(ends[0] * 1.35, roof.at(ends[0]), text, **small, va="top")
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        lines.setdefault(row["contender"], []).append(row)
    for name, members in lines.items():
        members.sort(key=lambda row: row["n"])
        colour, marker = STYLES.get(name, OTHER)
        axes.plot(
            [row["intensity"] for row in members],
            [row["gflops"] for row in members],
            color=colour,
            marker=marker or "+",
            markersize=5,
            linewidth=1.6 if members[0]["ours"] else 0.9,
            label=members[0]["title"],
            zorder=3 if members[0]["ours"] else 2,
        )
        for row in members if name in FAST else ():
            place = (row["intensity"], row["gflops"] * 1.1)
            axes.text(*place, size_text(row["n"]), **small, ha="center")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_title(title, fontsize=9.5, loc="left")
    axes.set_xlabel("useful work by least traffic [flop/byte]", fontsize=9)
    axes.grid(True, which="major", color="#e4e4e4", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = make_parser("bench roofline", __doc__)
    parser.add_argument("files", metavar="FILES", type=Path, nargs="*", help="rows; see above")
    parser.add_argument("--output", type=Path, help="the picture, .png or .svg")
    args = parser.parse_args(argv)
    gpu = torch.cuda.is_available()
    folder = results_folder(machine(torch.device("cuda" if gpu else "cpu")), gpu=gpu)
    files = args.files or [folder / f"{name}.json" for name in NAMES]
    output = args.output or (folder if not args.files else Path()) / "roofline.png"
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        parser.error(f"FILES must exist; these do not: {', '.join(missing)}")
    try:
        draw(load(files), output)
    except ValueError as error:
        parser.error(str(error))
    print(f"-> {output}")


if __name__ == "__main__":
    main()
