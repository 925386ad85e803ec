# SPDX-License-Identifier: Apache-2.0
"""`python -m bench scaling`: cross-rank contrast on 1, 2, 4 processes; scaling_step is of a step.

python -m bench scaling                                   # the table, and how far the model is off
python -m bench scaling --rows 1024 2048 --dims 256 --ranks 1 2 4
python -m bench scaling --save                            # bench/results/DEVICE/scaling.json
python -m bench scaling --predict 1024 --rate 400e12 --bandwidth 25e9 --latency 20e-6 --width 2

Each rank is a gloo process with one thread and holds as many rows whatever the number of ranks.
Where there are more ranks than cores, they take turns, which the model knows: it divides by
min(1, cores / ranks). The model of a forward and backward pass, of W ranks with N rows of D each:

    compute   2 N² D (own + others (W - 1)) / rate    own, others: products that kernels execute
    wire      calls latency + bytes / bandwidth       bytes: (W - 1) N (2 D width + 40)

`own` and `others` follow from the algorithm (1/2 + 3/2; 1 + 2) and the share of positives. The
rate is fitted to one rank, latency and bandwidth to gathers alone; what comes out for 2 and 4
ranks is then a prediction. --predict tells of other machines, whose rates you give.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from torch import Tensor

from bench.machine import machine
from bench.program import make_parser
from bench.rows import keep, load, results_folder, write
from pipa_fast import ops
from pipa_fast.ops._checks import group_name
from pipa_fast.ops._ranks import gather_padded
from pipa_fast.program import cores

CLASSES = 16
CALLS = 9  # collectives of a forward and backward: 2 of counts, 2 each of labels and x, z, u, loss
SMALL = 40  # bytes of a row besides its features: labels twice, z, u and their copies' padding


class Problem(NamedTuple):
    """What is measured with so many ranks."""

    ranks: int
    rows: int  # of each rank
    dim: int
    way: str  # "gather", "exchange"; "alone" without a group


class Model(NamedTuple):
    """A machine, as the model knows it."""

    rate: float  # FLOP/s of a rank
    bandwidth: float  # bytes/s that a rank receives
    latency: float  # s of a collective
    cores: int
    width: int = 4  # bytes of an element on the wire

    def seconds(self, ranks: int, rows: int, dim: int) -> tuple[float, float]:
        """Return a forward and backward's time of computing and on the wire [s]."""
        turns = max(1, ranks / self.cores)
        compute = 2 * rows**2 * dim * products(ranks) / self.rate * turns
        wire = 0.0
        if ranks > 1:
            wire = CALLS * self.latency * turns + bytes_received(ranks, rows, dim, self.width) / (
                self.bandwidth / turns
            )
        return compute, wire


def products(ranks: int) -> float:
    """Return how many N x N products a rank executes in a forward and backward pass."""
    positives = sum(s * s for s in shares())
    own = 0.5 * (1 + positives) + 1.5
    others = (1 - positives) + positives + 2
    return own + others * (ranks - 1)


def shares() -> list[float]:
    """Return each class's share of the rows: frequencies ∝ 1 / (c + 1)."""
    weights = [1 / (c + 1) for c in range(CLASSES)]
    return [w / sum(weights) for w in weights]


def bytes_received(ranks: int, rows: int, dim: int, width: int) -> int:
    """Return what a rank receives in a forward and backward pass of the gathered way."""
    return (ranks - 1) * rows * (2 * dim * width + SMALL)


def draw(total: int, dim: int) -> tuple[Tensor, Tensor]:
    """Return the rows of all ranks, the same on each."""
    generator = torch.Generator().manual_seed(0)
    x = F.normalize(torch.randn(total, dim, generator=generator), dim=1)
    return x, torch.multinomial(torch.tensor(shares()), total, True, generator=generator)


def seconds_of(run: Callable[[], Any], repeats: int) -> list[float]:
    """Return the times of a call that all ranks make at once [s], the slowest rank's of each."""
    times = []
    for _ in range(repeats + 1):  # the first warms up
        if dist.is_initialized():
            dist.barrier()
        start = time.perf_counter()
        run()
        spent = torch.tensor(time.perf_counter() - start, dtype=torch.float64)
        if dist.is_initialized():
            dist.all_reduce(spent, dist.ReduceOp.MAX)
        times.append(spent.item())
    return times[1:]


def compare(
    loss: Tensor, gradient: Tensor, every_x: Tensor, every_label: Tensor, problem: Problem
) -> dict[str, float]:
    """Return the relative errors of the first rank's results against one process in float64."""
    whole = every_x.double().requires_grad_()
    expected = ops.pixel_contrast(whole, every_label, backend="reference")
    expected.backward()
    assert whole.grad is not None
    wanted = problem.ranks * whole.grad[: problem.rows]
    return {
        "value_error": abs(loss.item() / expected.item() - 1),
        "grad_error": ((gradient - wanted).norm() / wanted.norm()).item(),
    }


def measure(problem: Problem, rank: int, repeats: int) -> dict[str, Any]:
    """Return a row of results; every rank calls it."""
    os.environ["PIPA_FAST_GATHER_BYTES"] = "0" if problem.way == "exchange" else str(2**40)
    every_x, every_label = draw(problem.ranks * problem.rows, problem.dim)
    part = slice(rank * problem.rows, (rank + 1) * problem.rows)
    x, labels = every_x[part].clone().requires_grad_(), every_label[part]
    group = None if problem.way == "alone" else dist.group.WORLD

    def contrast() -> Tensor:
        x.grad = None
        loss = ops.pixel_contrast(x, labels, group=group)
        loss.backward()
        return loss

    loss = contrast()
    assert x.grad is not None
    # One rank compares: in float64, all rows of all ranks are a hundred times its own work.
    errors = compare(loss, x.grad, every_x, every_label, problem) if rank == 0 else {}
    times = seconds_of(contrast, repeats)
    row = problem._asdict() | {
        "op": "scaling",
        "status": "ok",
        **errors,
        "p50_ms": statistics.median(times) * 1e3,
        "products": products(problem.ranks),
    }
    if group is not None:
        counts = [problem.rows] * problem.ranks
        name = group_name(group)
        gathers = seconds_of(lambda: gather_padded(name, x.detach(), counts), repeats)
        tiny = seconds_of(lambda: gather_padded(name, labels[:1], [1] * problem.ranks), repeats)
        row |= {
            "gather_ms": statistics.median(gathers) * 1e3,
            "latency_ms": statistics.median(tiny) * 1e3,
        }
    return row


def work(
    rank: int, ranks: int, folder: str, problems: list[Problem], repeats: int, out: str
) -> None:
    """Measure all problems of one number of ranks, in one of its processes."""
    torch.set_num_threads(1)
    if ranks > 1:
        where = f"file://{folder}/rendezvous{ranks}"
        dist.init_process_group("gloo", init_method=where, rank=rank, world_size=ranks)
    rows = [measure(problem, rank, repeats) for problem in problems]
    if rank == 0:
        write(Path(out), rows)
    if ranks > 1:
        dist.destroy_process_group()


def fit(rows: Sequence[dict[str, Any]], cores: int) -> Model:
    """Return what one rank, and gathers alone, say of this machine."""
    rates = [
        2 * r["rows"] ** 2 * r["dim"] * products(1) / (r["p50_ms"] * 1e-3)
        for r in rows
        if r["way"] == "alone"
    ]
    gathers = [r for r in rows if r["way"] == "gather"]
    latency, bandwidth = [], []
    for row in gathers:
        turns = max(1, row["ranks"] / cores)
        size = (row["ranks"] - 1) * row["rows"] * row["dim"] * 4
        latency.append(row["latency_ms"] * 1e-3 / turns)
        spent = max(row["gather_ms"] - row["latency_ms"], 1e-3) * 1e-3
        bandwidth.append(size / spent * turns)
    none = float("inf"), 0.0
    wire = (statistics.median(bandwidth), statistics.median(latency)) if gathers else none
    return Model(statistics.median(rates), *wire, cores)


def explain(rows: Sequence[dict[str, Any]], model: Model) -> list[dict[str, Any]]:
    """Return the rows with what the model says of them and how far it is off."""
    made = []
    for row in rows:
        compute, wire = model.seconds(row["ranks"], row["rows"], row["dim"])
        said = (compute + wire) * 1e3
        added = {
            "cores": model.cores,
            "rate_gflops": model.rate * 1e-9,
            "bandwidth_gbytes": model.bandwidth * 1e-9 if model.bandwidth < float("inf") else None,
            "latency_us": model.latency * 1e6,
            "model_compute_ms": compute * 1e3,
            "model_wire_ms": wire * 1e3,
            "model_error": said / row["p50_ms"] - 1,
        }
        made.append(row | added)
    return made


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Return the rows as a table."""
    made = Table(box=SIMPLE, caption="error: of the gradient against one process in float64")
    for column in ("ranks", "rows", "dim", "way", "ms", "model", "compute", "wire", "off", "error"):
        made.add_column(column, justify="left" if column == "way" else "right")
    for r in rows:
        made.add_row(
            *(str(r[key]) for key in ("ranks", "rows", "dim", "way")),
            f"{r['p50_ms']:.1f}",
            f"{r['model_compute_ms'] + r['model_wire_ms']:.1f}",
            f"{r['model_compute_ms']:.1f}",
            f"{r['model_wire_ms']:.1f}",
            f"{r['model_error']:+.0%}",
            f"{r['grad_error']:.1e}",
        )
    return made


def predictions(model: Model, most: int, rows: int, dim: int) -> Table:
    """Return what the model says of 1, 2, 4 … `most` ranks."""
    made = Table(box=SIMPLE, title=f"model: {rows} rows of {dim} a rank")
    for column in ("ranks", "compute [ms]", "wire [ms]", "received [MB]"):
        made.add_column(column, justify="right")
    ranks = 1
    while ranks <= most:
        compute, wire = model.seconds(ranks, rows, dim)
        size = bytes_received(ranks, rows, dim, model.width)
        made.add_row(str(ranks), f"{compute * 1e3:.2f}", f"{wire * 1e3:.2f}", f"{size * 1e-6:.1f}")
        ranks *= 2
    return made


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure everything that the command line asks for."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for ranks in args.ranks:
            ways = ("alone",) if ranks == 1 else ("gather", "exchange")
            problems = [
                Problem(ranks, n, d, way) for d in args.dims for n in args.rows for way in ways
            ]
            out = Path(folder) / f"{ranks}.json"
            mp.spawn(
                work,
                args=(ranks, folder, problems, args.repeats, str(out)),
                nprocs=ranks,
                daemon=False,
            )
            rows += load([out])
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = make_parser("bench scaling", __doc__)
    add = parser.add_argument
    add("--ranks", type=int, nargs="+", default=[1, 2, 4], help="processes; 1 must be among them")
    add("--rows", type=int, nargs="+", default=[512, 2048], help="of each rank")
    add("--dims", type=int, nargs="+", default=[256])
    add("--repeats", type=int, default=5)
    add("--json", type=Path, help="write the rows there, one JSON object a line")
    add("--save", action="store_true", help="write them to bench/results/DEVICE/scaling.json")
    add("--predict", type=int, metavar="RANKS", help="measure nothing: the model up to so many")
    add("--rate", type=float, default=1e14, help="FLOP/s of a rank, for --predict")
    add("--bandwidth", type=float, default=1e10, help="bytes/s that a rank receives")
    add("--latency", type=float, default=2e-5, help="s of a collective")
    add("--width", type=int, default=2, choices=(2, 4), help="bytes of an element on the wire")
    args = parser.parse_args(argv)
    console = Console()
    if args.predict:
        given = Model(args.rate, args.bandwidth, args.latency, args.predict, args.width)
        for rows in args.rows:
            for dim in args.dims:
                console.print(predictions(given, args.predict, rows, dim))
        return
    if 1 not in args.ranks:
        parser.error(f"--ranks must hold 1, to which the model is fitted; got {args.ranks}")
    torch.set_num_threads(1)
    where = machine(torch.device("cpu"))
    measured = run(args)
    model = fit(measured, cores())
    rows = [where | row for row in explain(measured, model)]
    console.print(table(rows))
    console.print(
        f"fitted: {model.rate * 1e-9:.0f} GFLOP/s a rank, {model.bandwidth * 1e-9:.2f} GB/s, "
        f"{model.latency * 1e6:.0f} us, {model.cores} cores"
    )
    saved = results_folder(where, gpu=False) / "scaling.json" if args.save else None
    keep(rows, args.json, saved)


if __name__ == "__main__":
    main()
