# SPDX-License-Identifier: Apache-2.0
"""Train the streets for long, at a tiny size, and tell whether the process grows.

    python -m bench.soak --save        # 10,000 steps, as committed in bench/results
    python -m bench.soak --steps 1000 --every 10

Every term of PiPa, a loader's process, evaluations and checkpoints take part. At intervals the
resident memory, open files and threads of this process, and the resident memory of its children,
are read from /proc, and what is allocated from glibc. Free pages are handed back before: kept ones
are as many as chance has it, tens of megabytes more or less (without, the resident memory of a run
that leaks nothing rose by 42 MB from step 2,850 to 9,650).

After a warm-up, a line is fitted to each memory; it is flat where its slope, with two standard
errors, is below LIMIT. Neighbouring samples are alike, so that the errors are those of as many
independent samples as the residuals' autocorrelation leaves. Files and threads may not be more
after the warm-up than they were in it. The exit status is 1 where something grows.
"""

import argparse
import ctypes
import json
import math
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.machine import machine
from bench.program import make_parser
from bench.rows import keep, results_folder
from pipa_fast.data.batch import Batch
from pipa_fast.training import distributed
from pipa_fast.training.config import Config, load, merge, read_recipe
from pipa_fast.training.trainer import Trainer

LIMIT = 256  # bytes a step: 2.5 MB in 10,000
WARM_UP = 0.2  # share of the steps
PAGE = os.sysconf("SC_PAGE_SIZE")
TINY: dict[str, Any] = {
    "device": "cpu",
    "precision": "fp32",
    "data": {"crop": [32, 64], "patch_crop": [32, 32], "batch_size": 1},
    "adaptation": {
        "mixed": {"threshold": 0.05},
        "pixel": {"num_anchors": 128},
        "patch": {
            "num_pairs": 64,
            "bank": 256,
            "confidence_threshold": 0.05,
            "bank_confidence": 0.05,
            "start": 0,
            "ramp": 0,
        },
    },
    "run": {"log_every": 50, "eval_every": 1000, "checkpoint_every": 250, "report": False},
}


MEMORIES = ("resident", "children_resident", "allocated")


class Mallinfo(ctypes.Structure):
    """What glibc's mallinfo2 returns: ten words, of which two are bytes in use."""

    _fields_ = [
        (f"word_{place}", ctypes.c_size_t) if name is None else (name, ctypes.c_size_t)
        for place, name in enumerate([None] * 4 + ["mmapped", None, None, "used", None, None])
    ]


class Watched(Trainer):
    """A Trainer that looks at its process every so many steps."""

    def __init__(self, config: Config, world: distributed.World, every: int) -> None:
        super().__init__(config, world)
        self.every, self.samples = every, list[dict[str, int]]()

    def _train_step(self, batch: Batch) -> dict[str, Tensor]:
        losses = super()._train_step(batch)
        done = self.iteration + 1
        if done % self.every == 0:
            self.samples.append({"step": done} | process())
        return losses


def process() -> dict[str, int]:
    """Return the memory [bytes], open files and threads of this process; Linux and glibc tell."""
    children = multiprocessing.active_children()
    glibc = ctypes.CDLL(None)
    glibc.mallinfo2.restype = Mallinfo
    glibc.malloc_trim(0)
    told = glibc.mallinfo2()
    return {
        "allocated": told.used + told.mmapped,
        "resident": _resident("self"),
        "children_resident": sum(_resident(str(child.pid)) for child in children),
        "files": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
    }


def _resident(process: str) -> int:
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * PAGE


def config_for(steps: int, workers: int, folder: Path) -> Config:
    """Return the settings of a run of all terms."""
    changes = {"iterations": steps, "data": {"num_workers": workers}, "run": {"dir": str(folder)}}
    return load(merge(merge(read_recipe("streets_pipa"), TINY), changes))


def slope(steps: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """Fit a line; return its slope and the standard error of that.

    The error is inf where the samples are too few, or too alike, to tell.
    """
    if len(steps) < 3:
        return 0.0, math.inf
    x, y = steps - steps.mean(), values - values.mean()
    spread = float(x @ x)
    fitted = float(x @ y) / spread
    residuals = y - fitted * x
    size = float(residuals @ residuals)
    if size == 0:
        return fitted, 0.0
    alike = max(0.0, float(residuals[1:] @ residuals[:-1]) / size)
    independent = len(x) * (1 - alike) / (1 + alike)
    if independent <= 2:
        return fitted, math.inf
    # The variance of a residual over the spread of as many steps as are independent.
    return fitted, math.sqrt(size / len(x) / (spread / len(x)) / (independent - 2))


def judge(samples: Sequence[dict[str, int]]) -> tuple[dict[str, Any], list[str]]:
    """Return the figures of a trace and what of it grows."""
    warm = [s for s in samples if s["step"] > WARM_UP * samples[-1]["step"]]
    before = samples[: len(samples) - len(warm)]
    steps = np.array([s["step"] for s in warm], float)
    figures: dict[str, Any] = {"warm_samples": len(warm)}
    grown = []
    for name in MEMORIES:
        fitted, error = slope(steps, np.array([s[name] for s in warm], float))
        figures[f"{name}_slope"], figures[f"{name}_slope_error"] = fitted, error
        if fitted + 2 * error > LIMIT:
            grown.append(f"{name}: {fitted:.0f} ± {2 * error:.0f} bytes a step, above {LIMIT}")
    for name in ("files", "threads"):
        first, last = max(s[name] for s in before), max(s[name] for s in warm)
        figures[f"{name}_first"], figures[f"{name}_last"] = first, last
        if last > first:
            grown.append(f"{name}: {first} in the warm-up, {last} after it")
    return figures, grown


def soak(steps: int, every: int, workers: int, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Train and return the row of results and what grows."""
    trainer = Watched(config_for(steps, workers, folder), distributed.start("cpu"), every)
    start = time.perf_counter()
    trainer.run()
    seconds = time.perf_counter() - start
    figures, grown = judge(trainer.samples)
    row = {
        "part": "soak",
        "recipe": "streets_pipa",
        "steps": steps,
        "workers": workers,
        "seconds": round(seconds, 1),
        "limit": LIMIT,
        **figures,
        "grows": grown,
        **machine(torch.device("cpu")),
        "samples": {key: [s[key] for s in trainer.samples] for key in trainer.samples[0]},
    }
    return row, grown


def arguments() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = make_parser("bench.soak", __doc__)
    add = parser.add_argument
    add("--steps", type=int, default=10_000)
    add("--every", type=int, default=50, help="steps between two samples")
    add("--workers", type=int, default=1, help="processes that load; 0 loads in this one")
    add("--json", type=Path, help="file for the row")
    add("--save", action="store_true", help="write it to bench/results")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = arguments()
    args = parser.parse_args(argv)
    if args.every < 1 or args.steps < 20 * args.every:
        parser.error(f"--steps must be at least 20 times --every; got {args.steps}, {args.every}")
    with tempfile.TemporaryDirectory() as folder:
        row, grown = soak(args.steps, args.every, args.workers, Path(folder))
    shown = {key: value for key, value in row.items() if key != "samples"}
    print(json.dumps(shown, indent=2))
    keep([row], args.json, results_folder(row, gpu=False) / "soak.json" if args.save else None)
    for what in grown:
        print(f"grows: {what}", file=sys.stderr)
    return bool(grown)


if __name__ == "__main__":
    sys.exit(main())
