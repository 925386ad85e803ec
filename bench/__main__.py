# SPDX-License-Identifier: Apache-2.0
"""Times the ops on this machine, every backend that can run here beside one matrix product.

python -m bench                                # all ops, a minute or so
python -m bench pixel_contrast --n 8192 --d 256 --seconds 30
python -m bench --save                         # also writes bench/results/DEVICE/OP.json
"""

import argparse
import json
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from bench.harness import machine, measure

OPS = ("pixel_contrast", "patch_consistency")
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Times the ops against one matrix product."
    )
    parser.add_argument("ops", nargs="*", metavar="OP", help=f"some of: {', '.join(OPS)}; or all")
    parser.add_argument("--n", type=int, nargs="+", help="rows (default: the op's own sizes)")
    parser.add_argument("--d", type=int, nargs="+", default=[64, 256], help="columns")
    parser.add_argument("--seconds", type=float, default=8, help="time for each size")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--save", action="store_true", help="write bench/results/DEVICE/OP.json")
    args = parser.parse_args()
    unknown = set(args.ops) - set(OPS)
    if unknown:
        parser.error(f"no bench of {', '.join(sorted(unknown))}; there are {', '.join(OPS)}")

    device = torch.device(args.device)
    where = machine(device)
    console = Console()
    console.print(", ".join(f"{key} {value}" for key, value in where.items()))
    for op in args.ops or OPS:
        module = import_module(f"bench.{op}")
        rows = []
        for n in args.n or module.SIZES:
            for d in args.d:
                problem = module.problem(n, d, device=device, seed=0)
                rows += [where | row for row in measure(op, problem, seconds=args.seconds)]
        console.print(table(op, rows))
        if args.save:
            console.print(f"written to {save(op, where['device'], rows)}")


def table(op: str, rows: list[dict[str, Any]]) -> Table:
    """Return the rows as a table that fits 80 columns."""
    caption = (
        "products: time in units of one torch.mm of that size\n"
        "spread: (p80 - p20) / ms; error: the larger of the two against float64"
    )
    made = Table(title=op, caption=caption, box=SIMPLE, padding=(0, 1, 0, 0))
    for column in ("backend", "mode"):
        made.add_column(column, no_wrap=True)
    for column in ("NxMxD", "ms", "spread", "products", "GFLOP/s", "error"):
        made.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        right = row["loss_error"] is not None
        made.add_row(
            row["backend"],
            row["mode"],
            f"{row['n']}x{row['m']}x{row['d']}",
            f"{row['p50_ms']:.2f}",
            f"{(row['p80_ms'] - row['p20_ms']) / row['p50_ms']:.0%}",
            f"{row['products']:.2f}",
            f"{row['gflops']:.1f}",
            f"{max(row['loss_error'], row['grad_error']):.0e}" if right else "",
        )
    return made


def save(op: str, device: str, rows: list[dict[str, Any]]) -> Path:
    """Write the rows as JSON lines and return the file."""
    folder = RESULTS / re.sub(r"[^\w.-]+", "_", device)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{op}.json"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


if __name__ == "__main__":
    main()
