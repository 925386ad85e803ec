# SPDX-License-Identifier: Apache-2.0
"""Several runs side by side: a table, and groups of runs that differ in their seed alone."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from pipa_fast.checks import require
from pipa_fast.evaluation.runs import HARMLESS, RESULTS, Run, classes_of, flatten


def comparison_table(runs: Sequence[Run]) -> Table:
    """Return mIoU and IoU per class [percent] of runs, with differences to the first.

    Raises:
        ValueError: no runs.
    """
    require(len(runs) > 0, "runs", list(runs), "at least one run")
    table = Table(title="IoU on the validation images [%]", title_justify="left")
    table.add_column("class")
    for position, run in enumerate(runs):
        table.add_column(_heading(run), justify="right")
        if position:
            table.add_column("Δ", justify="right")
    for name in classes_of(runs):
        table.add_row(name, *_cells([run.iou.get(name) for run in runs]))
    table.add_section()
    table.add_row(Text("mIoU", style="bold"), *_cells([run.miou for run in runs]), style="bold")
    return table


def _heading(run: Run) -> str:
    when = "by evaluate" if run.iteration is None else f"step {run.iteration}"
    return f"{run.path.resolve().name}\n{when}, seed {run.seed}"


def _cells(values: Sequence[float | None]) -> list[Text]:
    """Return a row's numbers: the first run's, then each other's with its difference."""
    first, *others = values
    cells = [Text("-" if first is None else f"{first:.1f}")]
    for value in others:
        cells.append(Text("-" if value is None else f"{value:.1f}"))
        cells.append(Text("-") if first is None or value is None else signed(value - first))
    return cells


def signed(difference: float) -> Text:
    """Return a difference with its sign, green where it is a gain and red where a loss."""
    style = "green" if difference >= 0.05 else "red" if difference <= -0.05 else ""
    return Text(f"{difference:+.1f}", style=style)


@dataclass(kw_only=True, slots=True, frozen=True)
class Group:
    """Runs of the same settings on several seeds, or one run."""

    name: str
    runs: list[Run]

    def miou(self) -> tuple[float, float]:
        """Return mean and standard deviation of mIoU [percent]; 0 for one run."""
        return _mean_and_spread([run.miou for run in self.runs])

    def iou(self, name: str) -> tuple[float, float] | None:
        """Return those of a class; None where some run has no such class."""
        values = [run.iou[name] for run in self.runs if name in run.iou]
        return _mean_and_spread(values) if len(values) == len(self.runs) else None


def spread_text(found: tuple[float, float] | None) -> str:
    """Return mean and standard deviation as text; the latter only where there is one."""
    if found is None:
        return "-"
    mean, spread = found
    return f"{mean:.1f}" + (f" ± {spread:.1f}" if spread else "")


def group_table(groups: Sequence[Group]) -> Table:
    """Return mean and standard deviation over seeds of mIoU and IoU per class [percent]."""
    table = Table(title="Mean ± standard deviation over seeds [%]", title_justify="left")
    table.add_column("class")
    for group in groups:
        table.add_column(Text(f"{group.name}\nn = {len(group.runs)}"), justify="right")
    for name in classes_of([run for group in groups for run in group.runs]):
        table.add_row(name, *(spread_text(group.iou(name)) for group in groups))
    table.add_section()
    table.add_row("mIoU", *(spread_text(group.miou()) for group in groups), style="bold")
    return table


def notes(runs: Sequence[Run]) -> list[str]:
    """Return a line for each run on how its scores were taken; none where all are training's own,
    taken alike.
    """
    ways = {run.how() for run in runs}
    if len(ways) == 1 and all(run.scored == RESULTS for run in runs):
        return []
    return [f"{run.path}: {run.how()}" for run in runs]


def _mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def grouped(runs: Sequence[Run]) -> list[Group]:
    """Return runs in groups, in the order of their first; names of folders tell groups apart."""
    found: dict[object, list[Run]] = {}
    for run in runs:
        # a converted checkpoint has the settings of the run that it is compared with
        found.setdefault((_what(run), run.iteration is None, run.how()), []).append(run)
    return [
        Group(name=many[0].recipe if len(many) > 1 else many[0].path.resolve().name, runs=many)
        for many in found.values()
    ]


def _what(run: Run) -> object:
    """Return what a run computes, but for its seed; a run without settings is like no other."""
    settings = {k: v for k, v in flatten(run.config).items() if k != "seed"}
    settings = {k: v for k, v in settings.items() if not k.startswith(HARMLESS)}
    if run.images_per_step is not None:  # two ranks of one image are one rank of two
        settings["data.batch_size"] = run.images_per_step
    return repr(sorted(settings.items())) if settings else run.path
