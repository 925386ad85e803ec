# SPDX-License-Identifier: Apache-2.0
"""What a run tells: a progress bar, TensorBoard events and a line of JSON for every record."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch.utils.tensorboard.writer import SummaryWriter

from pipa_fast.evaluation.inference import EvalResult
from pipa_fast.training.checkpoint import write_atomically

HISTORY = "history.jsonl"


def _numbers(value: Any) -> Any:
    """Return a record with null where a number is infinite or none: JSON knows no such numbers."""
    if isinstance(value, Mapping):
        return {key: _numbers(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class Pace:
    """How fast steps were since losses were last logged, and what they take of a GPU.

    Args:
        seconds: of a step, without evaluations.
        images: in a step, of all ranks.
        waiting: share of that time in which the step waited for its images, 0 to 1.
        memory: most bytes that tensors held at once on this rank's GPU; None on a CPU.
    """

    seconds: float
    images: int
    waiting: float
    memory: int | None = None

    def scalars(self) -> dict[str, float]:
        """Return what is recorded."""
        found = {
            "images_per_second": round(self.images / self.seconds, 2),
            "seconds_per_step": round(self.seconds, 4),
            "waiting": round(self.waiting, 3),
        }
        if self.memory is not None:
            found["memory_gib"] = round(self.memory / 2**30, 2)
        return found

    def text(self, steps: int) -> str:
        """Return it as a person reads it, and the time that as many more steps take."""
        parts = [f"{self.seconds:.3g} s/step ({self.waiting:.0%} waiting for images)"]
        if self.memory is not None:
            parts.append(f"{self.memory / 2**30:.1f} GiB")
        parts.append(f"{timedelta(seconds=round(self.seconds * steps))} left")
        return "  ".join(parts)


class RunLog:
    """Progress, scalars and history of the main rank; the others hold one that is silent."""

    def __init__(self, run_dir: Path, iterations: int, *, start: int = 0, active: bool) -> None:
        self.console = Console(quiet=not active, markup=False)
        self.path, self.iterations = run_dir / HISTORY, iterations
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[losses]}"),
            console=self.console,
            disable=not active or not self.console.is_terminal,
            transient=True,
        )
        self.writer: SummaryWriter | None = None
        self.unscored = False  # whether there is no evaluation of the step it starts after
        if active:
            self._keep_history_before(start)
            # it hides what was written of that step and later ones
            self.writer = SummaryWriter(str(run_dir), purge_step=start + 1)
        self.task = self.progress.add_task(
            run_dir.name, total=iterations, completed=start, losses=""
        )

    def _keep_history_before(self, start: int) -> None:
        """Drop records that the resumed run is about to write again."""
        kept: list[tuple[str, dict[str, Any]]] = []
        if start and self.path.is_file():
            # What follows the last newline is a record that a killed run has not finished.
            lines = self.path.read_text().split("\n")[:-1]
            known = [(line, json.loads(line)) for line in lines]
            kept = [pair for pair in known if pair[1]["iteration"] <= start]
        scored = [record["iteration"] for _, record in kept if record["kind"] == "eval"]
        self.unscored = start > 0 and start not in scored
        write_atomically(self.path, "".join(f"{line}\n" for line, _ in kept).encode())

    def __enter__(self) -> "RunLog":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()
        if self.writer is not None:
            self.writer.close()

    def advance(self) -> None:
        """Count one step."""
        self.progress.advance(self.task)

    def say(self, message: str) -> None:
        """Print a line above the progress bar."""
        self.console.print(message, highlight=False, soft_wrap=True)

    def train(self, iteration: int, losses: Mapping[str, float], lr: float, pace: Pace) -> None:
        """Record a training step's losses and rate, and the pace of steps up to it."""
        text = "  ".join(f"{name} {value:.3f}" for name, value in losses.items())
        self.progress.update(self.task, losses=text)
        if not self.console.is_terminal:
            rest = pace.text(self.iterations - iteration)
            self.say(f"step {iteration:6d}  {text}  lr {lr:.2g}  {rest}")
        measured = pace.scalars()
        record = {"kind": "train", "iteration": iteration, "loss": dict(losses), "lr": lr}
        scalars = {f"loss/{name}": value for name, value in losses.items()}
        self._record(record | measured, scalars | {"lr": lr} | measured)

    def evaluated(self, iteration: int, result: EvalResult) -> None:
        """Record an evaluation's scores [percent]."""
        self.say(f"step {iteration:6d}  mIoU {result.miou:.2f}")
        self._record(
            {"kind": "eval", "iteration": iteration, **result.summary()},
            {"miou": result.miou} | {f"iou/{name}": value for name, value in result.iou.items()},
        )

    def _record(self, record: dict[str, Any], scalars: Mapping[str, float]) -> None:
        if self.writer is None:
            return
        with open(self.path, "a") as file:
            file.write(json.dumps(_numbers(record), allow_nan=False) + "\n")
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, record["iteration"])
        # Now, while the folder is there: the writer's own thread would tell of a lost one by a
        # traceback.
        self.writer.flush()
