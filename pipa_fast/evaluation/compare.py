# SPDX-License-Identifier: Apache-2.0
"""Several runs side by side; differences are to the first.

python -m pipa_fast.evaluation.compare runs/streets_source runs/streets_pipa
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipa_fast.checks import require
from pipa_fast.data.labels import CLASSES
from pipa_fast.evaluation.runs import Run, read_run


def comparison_table(runs: Sequence[Path | str]) -> Table:
    """Return mIoU and IoU per class [percent] of run folders, with differences to the first.

    Raises:
        ValueError: no runs, or a folder without results.
    """
    require(len(runs) > 0, "runs", list(runs), "at least one run folder")
    read = [read_run(path) for path in runs]
    table = Table(title="IoU on the validation images [%]", title_justify="left")
    table.add_column("class")
    for position, run in enumerate(read):
        table.add_column(_heading(run), justify="right")
        if position:
            table.add_column("Δ", justify="right")
    present = {name for run in read for name in run.iou}
    for name in [c for c in CLASSES if c in present] + sorted(present - set(CLASSES)):
        table.add_row(name, *_cells([run.iou.get(name) for run in read]))
    table.add_section()
    table.add_row(Text("mIoU", style="bold"), *_cells([run.miou for run in read]), style="bold")
    return table


def _heading(run: Run) -> str:
    return f"{run.path.name}\nstep {run.iteration}, seed {run.seed}"


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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the process's exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m pipa_fast.evaluation.compare",
        description="Print mIoU and IoU per class of run folders; differences are to the first.",
    )
    parser.add_argument("runs", nargs="+", type=Path, help="run folders: runs/streets_source ...")
    options = parser.parse_args(argv)
    try:
        table = comparison_table(options.runs)
    except ValueError as error:
        parser.error(str(error))
    console = Console()
    console.print(table)
    for run in options.runs:
        if (run / "report.html").is_file():
            console.print(f"report: {run / 'report.html'}", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
