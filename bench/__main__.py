# SPDX-License-Identifier: Apache-2.0
"""Times ops on this machine: every backend that can run here, its peers, and one matrix product.

python -m bench                                          # all ops at their own sizes
python -m bench pixel_contrast --sizes 1024 8192 --dims 128 --peers eager compile
python -m bench pixel_contrast --variants all --peers metric_learning
python -m bench teacher_update --variants streets_s mit_b0
python -m bench patch_consistency --peers none --json rows.json --plot rows.png
python -m bench --save                                   # bench/results/DEVICE/OP.json and .png
python -m bench step --recipe streets_pipa               # a whole training step and its parts
python -m bench loading --recipe gta2cs_daformer_pipa    # the images of its steps
python -m bench scaling                                  # cross-rank contrast by processes
python -m bench scaling_step --recipe streets_pipa       # and a whole step
python -m bench bandwidth --save                         # how fast memory is
python -m bench roofline                                 # results beside products and memory

A contender is checked against float64 before it is timed. bench/results/README.md tells the
columns of the rows; `python -m bench.plot` draws them again.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from bench import bandwidth, loading, roofline, scaling, scaling_step, step, tables
from bench.contenders import contenders
from bench.harness import Effort, measure
from bench.machine import cap_memory, machine
from bench.plot import plot
from bench.problem import DTYPES, OPS, Settings
from bench.program import make_parser
from bench.rows import results_folder, write

APART = {
    "step": step.main,
    "loading": loading.main,
    "scaling": scaling.main,
    "scaling_step": scaling_step.main,
    "bandwidth": bandwidth.main,
    "roofline": roofline.main,
}
"""What has settings of its own: a training step, the loading of its images, memory, a picture."""


def arguments() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    usual = Effort()
    parser = make_parser("bench", __doc__)
    add = parser.add_argument
    add("ops", nargs="*", metavar="OP", help=f"some of: {', '.join(OPS)}; or all")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--backends", nargs="+", help="default: all that can run here; none for none")
    add("--peers", nargs="+", help="default: all that can run here; none for none")
    add("--sizes", "--n", type=int, nargs="+", help="n (default: the op's own)")
    add("--dims", "--d", type=int, nargs="+", help="d (default: the op's own)")
    add("--dtypes", nargs="+", default=["float32"], choices=list(DTYPES))
    add("--variants", nargs="+", help="forms of the op (default: its first)")
    add("--temperature", type=float, default=0.1)
    add("--seed", type=int, default=0)
    add("--threads", type=int, help="of the CPU (default: torch's)")
    add("--seconds", type=float, default=usual.seconds, help="of timing for each size [s]")
    add("--warmup", type=float, default=usual.warmup, help="for each contender [s]")
    add("--repeats", type=int, default=usual.repeats, help="of each contender, at least")
    add("--limit", type=float, default=usual.limit, help="leave out who would need more a call [s]")
    add("--memory", action=argparse.BooleanOptionalAction, default=True, help="measure it too")
    add("--json", type=Path, help="write the rows there, one JSON object a line")
    add("--plot", type=Path, help="draw time and memory against n there")
    add("--save", action="store_true", help="both, as bench/results/DEVICE/OP.json and .png")
    return parser


def problems(op: str, args: argparse.Namespace) -> Iterator[Settings]:
    """Yield what the command line asks of an op, small sizes first."""
    module = import_module(f"bench.{op}")
    unknown = set(args.variants or ()) - set(module.VARIANTS)
    if unknown:
        known = ", ".join(module.VARIANTS) or "none"
        raise ValueError(f"variants of {op}: {known}; got {', '.join(sorted(unknown))}")
    for variant in args.variants or module.VARIANTS[:1]:
        for dtype in args.dtypes:
            for d in args.dims or module.DIMS:
                for n in sorted(args.sizes or module.SIZES):
                    yield Settings(
                        op=op,
                        n=n,
                        d=d,
                        device=args.device,
                        dtype=dtype,
                        seed=args.seed,
                        variant=variant,
                        temperature=args.temperature,
                    )


def expectations(rows: Sequence[dict[str, Any]], s: Settings) -> dict[str, float]:
    """Return how long a call should take [s], by the largest smaller size: work grows as its pairs.

    A contender that did not fit or was too slow at a smaller size is not tried again.
    """
    found: dict[str, float] = {}
    has_both = any(row["mode"] == "both" for row in rows)
    for row in rows:  # small sizes first
        same = (row["op"], row["variant"], row["dtype"], row["d"]) == (
            s.op,
            s.variant,
            s.dtype,
            s.d,
        )
        if not same or row["n"] >= s.n or row["mode"] not in ("both", "forward"):
            continue
        growth = s.n / row["n"] * (1 if s.op == "patch_consistency" else s.n / row["n"])
        if row["status"].startswith("too slow"):
            found[row["contender"]] = float("inf")
        elif row["mode"] == "both" or not has_both:
            found[row["contender"]] = row.get("p50_ms", 0) * 1e-3 * growth
    return found


def chosen(names: list[str] | None) -> list[str] | None:
    """Return the names asked for: [] for "none", None for all."""
    return [] if names == ["none"] else names


def run(
    op: str, args: argparse.Namespace, console: Console, before: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Measure all that is asked of an op, and return its rows; `before` are those of other ops."""
    device = torch.device(args.device)
    effort = Effort(args.seconds, args.warmup, args.repeats, args.limit, args.memory)
    taking_part = contenders(op, device, chosen(args.backends), chosen(args.peers))
    where, rows = machine(device), []
    for settings in problems(op, args):
        new = measure(settings, taking_part, effort, expectations(rows, settings))
        new = [where | row for row in new]
        rows += new
        console.print(tables.table(new))
        for line in tables.comparisons(new):
            console.print(line, highlight=False)
        if args.json:  # after each size: a run that is stopped leaves what it has
            write(args.json, [*before, *rows])
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    words = sys.argv[1:] if argv is None else list(argv)
    if words and words[0] in APART:
        APART[words[0]](words[1:])
        return
    parser = arguments()
    args = parser.parse_args(words)
    if unknown := sorted(set(args.ops) - set(OPS)):
        parser.error(f"no bench of {', '.join(unknown)}; there are {', '.join(OPS)}")
    if args.threads:
        torch.set_num_threads(args.threads)
    console, where = Console(), machine(torch.device(args.device))
    console.print(", ".join(f"{key} {value}" for key, value in where.items()), highlight=False)
    rows = []
    try:
        for op in args.ops or OPS:
            found = run(op, args, console, rows)
            rows += found
            if args.save:
                gpu = torch.device(args.device).type == "cuda"
                path = results_folder(where, gpu=gpu) / f"{op}.json"
                write(path, found)
                plot(found, path.with_suffix(".png"))
                console.print(f"-> {path} and .png")
    except ValueError as error:
        parser.error(str(error))
    if args.json:
        write(args.json, rows)
        console.print(f"-> {args.json}")
    if args.plot:
        plot(rows, args.plot)
        console.print(f"-> {args.plot}")


if __name__ == "__main__":
    if not APART.keys() & set(sys.argv[1:2]) and "cuda" not in arguments().parse_args().device:
        cap_memory()
    main()
