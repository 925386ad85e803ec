# SPDX-License-Identifier: Apache-2.0
"""`python -m bench step`: a recipe's training step, its parts, and the lineage's way beside it.

python -m bench step --recipe streets_pipa
python -m bench step --recipe gta2cs_daformer_pipa --steps 1 --no-lineage -- --model.weights null

What follows `--` changes settings of the recipe, as on the command line of pipa_fast.train. Steps
are those of the middle of the run, when every term counts: the patch consistency's bank is full,
and of its pairs as many count as can, since a network that learnt nothing is sure of none. Ours and
the lineage's, which is float32, take turns on the same weights and batches. Where the recipe
computes in less, ours in float32 stands between them. Parts are measured afterwards, their time by
torch.profiler, which costs some microseconds an operator (on a GPU it is that of their kernels),
their memory in a step of its own: how far it rises above what was there when the part began.
Without other contenders, memory is also that of the whole process. The work of PiPa's losses, as a
share of the step's, is their share of the time on a machine that does all of it at one rate; it
isn't told of a compiled network, whose work isn't seen.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from torch.nn.functional import normalize

from bench.machine import machine
from bench.memory import end_mark, start_mark
from bench.peers.step import lineage
from bench.program import make_parser
from bench.rows import write
from bench.step_parts import STEP, Work, memory_of, parts_of
from pipa_fast.data.batch import Batch
from pipa_fast.losses import PatchConsistencyLoss
from pipa_fast.training import distributed
from pipa_fast.training.config import Config, load, read_recipe
from pipa_fast.training.trainer import Trainer
from pipa_fast.uda.objectives.patch_consistency import PatchConsistency

# What PiPa adds besides the forward and backward passes of the crops.
PIPA = (
    "objective:pixel",
    "objective:patch",
    "projection",  # and its backward
    "pipa_fast::pixel_contrast_backward",
    "pipa_fast::patch_consistency_backward",
    "op:gather_pixels backward",
)


# The passes over the overlapping crops: teacher, student, and the gradient through it.
CROPS = ("forward:patch", "backward:patch")


class Contender:
    """A trainer of its own, and how its steps are built."""

    def __init__(
        self, name: str, config: Config, way: Callable[[], AbstractContextManager], *, reads: bool
    ) -> None:
        self.name, self.way, self.reads = name, way, reads
        self.trainer = Trainer(config, distributed.start(config.device))
        self.trainer.iteration = config.iterations // 2
        for objective in self.trainer.step.objectives:
            if isinstance(objective, PatchConsistency):
                _fill(objective.loss, config.model.num_classes)
        self.seconds: list[float] = []
        # the largest memory of a step, and how far it rose above what was there [bytes]
        self.peak = self.rise = 0

    def step(self, batch: Batch, *, timed: bool = True) -> None:
        """Take one step; its time counts if `timed`."""
        start = time.perf_counter()
        with self.way():
            losses = self.trainer._train_step(batch)
            if self.reads:
                for value in losses.values():
                    value.item()
        _wait(self.trainer)
        if timed:
            self.seconds.append(time.perf_counter() - start)

    def weighed_step(self, batch: Batch, *, timed: bool) -> None:
        """Take one step and see its memory; freed memory is given back before, which takes time."""
        gpu = self.trainer.world.device.type == "cuda"
        before = torch.cuda.memory_allocated() if gpu else start_mark()
        if gpu:
            torch.cuda.reset_peak_memory_stats()
        self.step(batch, timed=timed)
        self.peak = torch.cuda.max_memory_allocated() if gpu else end_mark()
        self.rise = self.peak - before

    def row(self, *, whole: bool) -> dict[str, Any]:
        """Return what was measured; the `whole` memory too, where it holds no other contender."""
        return {
            "part": f"step, {self.name}",
            "ms": 1e3 * statistics.median(self.seconds),
            "dtype": str(self.trainer.dtype or torch.float32).removeprefix("torch."),
            "rise_bytes": self.rise,
        } | ({"process_bytes": self.peak} if whole else {})


def _fill(loss: PatchConsistencyLoss, num_classes: int) -> None:
    """Fill the loss's bank with directions of all classes, and let all pairs be sure enough."""
    bank, draw = loss.bank, torch.Generator().manual_seed(0)
    assert bank is not None, "the objective has one"
    keys = normalize(torch.randn(bank.capacity, bank.dim, generator=draw))
    labels = torch.randint(num_classes, (bank.capacity,), generator=draw)
    device = bank.keys.device
    bank.push(keys.to(device), labels.to(device))
    loss.confidence_threshold = 0.0


def _wait(trainer: Trainer) -> None:
    if trainer.world.device.type == "cuda":
        torch.cuda.synchronize()


def measure(config: Config, steps: int, *, with_lineage: bool) -> list[dict[str, Any]]:
    """Return a row for each contender and part of a step."""
    contenders = [Contender("ours", config, nullcontext, reads=False)]
    if with_lineage:
        plain = replace(config, precision="fp32")
        if contenders[0].trainer.dtype is not None:
            contenders.append(Contender("ours in float32", plain, nullcontext, reads=False))
        contenders.append(Contender("lineage", plain, lineage, reads=True))
    batches, waits = contenders[0].trainer._batches(), []
    for number in range(steps + 1):
        start = time.perf_counter()
        batch = next(batches)
        waits.append(time.perf_counter() - start)
        for contender in contenders:
            if steps > 0:
                contender.step(batch, timed=number > 0)
    for contender in contenders:
        contender.weighed_step(batch, timed=steps == 0)
    rows = [{"part": "data, one batch", "ms": 1e3 * statistics.median(waits)}]
    rows += [contender.row(whole=len(contenders) == 1) for contender in contenders]
    return rows + _parts(contenders[0].trainer, batch)


def _parts(trainer: Trainer, batch: Batch) -> list[dict[str, Any]]:
    """Return the parts of two more steps, one for time and one for memory, and PiPa's share."""
    seen, calls = parts_of(trainer, [batch])
    whole, work = seen[STEP] or 1.0, Work()  # 0 where no kernel was seen
    with work:
        rise = memory_of(trainer, batch)
    rows: list[dict[str, Any]] = [
        {"part": name, "ms": us * 1e-3, "share": us / whole, "calls": calls[name]}
        | ({"rise_bytes": rise[name]} if name in rise else {})
        for name, us in seen.most_common()
        if name != STEP
    ]
    own = sum(us for name, us in seen.items() if name.startswith(PIPA))
    crops = sum(us for name, us in seen.items() if name.startswith(CROPS))
    return [
        *rows,
        {"part": "PiPa without its encoder passes", "ms": own * 1e-3, "share": own / whole},
        {"part": "passes over PiPa's crops", "ms": crops * 1e-3, "share": crops / whole},
        *([] if trainer.config.model.compile else _work(work)),
    ]


def _work(work: Work) -> list[dict[str, Any]]:
    own, whole = work.of_losses(), work.get_total_flops()
    return [
        {"part": "work of a step", "flop": whole},
        {"part": "work of PiPa's losses", "flop": own, "share": own / whole},
    ]


def table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    """Return the rows for people."""
    made = Table(title=title, title_justify="left", box=SIMPLE)
    for column in ("part", "ms", "share", "calls", "dtype", "rise [MB]"):
        made.add_column(column, justify="left" if column == "part" else "right", no_wrap=True)
    for row in (row for row in rows if "ms" in row):
        share = f"{row['share']:.2%}" if "share" in row else ""
        rise = f"{row['rise_bytes'] / 1e6:,.0f}" if "rise_bytes" in row else ""
        calls, dtype = str(row.get("calls", "")), row.get("dtype", "")
        made.add_row(row["part"], f"{row['ms']:,.2f}", share, calls, dtype, rise)
    return made


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = make_parser("bench step", __doc__)
    parser.add_argument("--recipe", default="streets_pipa", help="recipe name or YAML file")
    parser.add_argument(
        "--steps", type=int, default=5, help="that are timed, after one that is not"
    )
    parser.add_argument("--threads", type=int, help="of the CPU (default: torch's)")
    parser.add_argument("--lineage", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--json", type=Path, help="write the rows there, one JSON object a line")
    parser.add_argument("settings", nargs="*", help="settings of the recipe, after --")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        config = load(read_recipe(args.recipe), [*args.settings, "--run.dir", folder])
        where = machine(distributed.start(config.device).device)
        rows = measure(config, args.steps, with_lineage=args.lineage)
    rows = [where | {"op": "step", "recipe": args.recipe} | row for row in rows]
    console = Console()
    if not console.is_terminal:
        console = Console(width=100)  # or its names would be cut
    console.print(table(f"{args.recipe}: a step, {where['device']}", rows))
    steps = [row for row in rows if row["part"].startswith("step, ")]
    for row in steps[:-1]:
        name, ratio = row["part"].removeprefix("step, "), steps[-1]["ms"] / row["ms"]
        console.print(f"{name}: {ratio:.2f} times as fast as the lineage's way", highlight=False)
    if "process_bytes" in steps[0]:
        gigabytes = steps[0]["process_bytes"] / 1e9
        console.print(f"memory, weights and all: at most {gigabytes:.1f} GB", highlight=False)
    for row in (row for row in rows if "flop" in row):
        share = f", {row['share']:.2%} of it" if "share" in row else ""
        console.print(f"{row['part']}: {row['flop'] * 1e-12:.3f} TFLOP{share}", highlight=False)
    if args.json:
        write(args.json, rows)


if __name__ == "__main__":
    main()
