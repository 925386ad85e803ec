# SPDX-License-Identifier: Apache-2.0
"""Which share of a training step its parts have, by torch.profiler: what a kernel could save.

python -m bench.profile_training --config streets_pipa --threads 1

Steps are those of the middle of the run, when every objective of the recipe counts. The profiler
costs some microseconds an operator, so that parts of many small ones look larger than they are.
"""

import argparse
import contextlib
import itertools
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from pipa_fast import ops
from pipa_fast.data.batch import Batch
from pipa_fast.training import distributed
from pipa_fast.training.config import load, read_recipe
from pipa_fast.training.trainer import Trainer

# Ops that are torch functions and no operators get a range; the others have their own.
FUNCTIONS = ("sample_anchors", "gather_pixels", "overlap_pairs")
PARTS = (
    "forward:",
    "backward:",
    "objective:",
    "projection",
    "teacher",
    "optimizer",
    "ema",
    "pipa_fast::",
    "op:",
)
STEP = "step"


def named(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function inside a range of the profiler."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with record_function(f"op:{name}"):
            return function(*args, **kwargs)

    return call


def inside(event: FunctionEvent) -> Iterator[FunctionEvent]:
    """Yield an event and all below it."""
    yield event
    for child in event.cpu_children:
        yield from inside(child)


def totals(events: Sequence[FunctionEvent]) -> tuple[Counter[str], Counter[str]]:
    """Return the time [us] and the number of calls of every part.

    The backward of gather_pixels, which is torch's, is found by the numbers of its forward.
    """
    time: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    numbers = {
        e.sequence_nr for top in events if top.name == "op:gather_pixels" for e in inside(top)
    }
    for event in events:
        name = event.name
        if name.startswith("autograd::engine::evaluate_function"):
            name = "op:gather_pixels backward" if event.sequence_nr in numbers - {-1} else ""
        if name == STEP or name.startswith(PARTS):
            time[name] += event.time_range.elapsed_us()
            calls[name] += 1
    return time, calls


def parts_of(trainer: Trainer, batches: Sequence[Batch]) -> tuple[Counter[str], Counter[str]]:
    """Return what `totals` does, of one step on each batch."""
    with contextlib.ExitStack() as patched:
        for name in FUNCTIONS:
            patched.enter_context(mock.patch.object(ops, name, named(name, getattr(ops, name))))
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            for batch in batches:
                with record_function(STEP):
                    trainer._train_step(batch)
    return totals(seen.events() or ())


def measure(config: str, steps: int, threads: int | None) -> tuple[Counter[str], Counter[str]]:
    """Return the parts of so many steps from the middle of a recipe, after two others."""
    with tempfile.TemporaryDirectory() as folder:
        settings = load(read_recipe(config))
        settings.run.dir = folder
        trainer = Trainer(settings, distributed.start(settings.device))
        if threads:
            torch.set_num_threads(threads)
        trainer.iteration = settings.iterations // 2
        batches = trainer._batches()
        for _ in range(2):
            trainer._train_step(next(batches))
        return parts_of(trainer, list(itertools.islice(batches, steps)))


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.profile_training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", default="streets_pipa", help="recipe name or YAML file")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of the CPU (default: torch's)")
    args = parser.parse_args(argv)
    time, calls = measure(args.config, args.steps, args.threads)
    steps = calls[STEP]  # fewer than asked for where the recipe has fewer left
    table = Table(title=f"{args.config}, mean of {steps} steps", box=SIMPLE)
    for column in ("part", "ms", "share", "calls"):
        table.add_column(column, justify="left" if column == "part" else "right", no_wrap=True)
    for name, us in time.most_common():
        ms, times = us / steps * 1e-3, calls[name] / steps
        table.add_row(name, f"{ms:.2f}", f"{us / time[STEP]:.2%}", f"{times:g}")
    Console().print(table)


if __name__ == "__main__":
    main()
