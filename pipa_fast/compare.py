# SPDX-License-Identifier: Apache-2.0
"""Put runs side by side: a table here, and a page with curves, classes and the same images.

python -m pipa_fast.compare runs/streets_source runs/streets_pipa
python -m pipa_fast.compare runs/pipa_seed* --out comparison.html --images 4
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from pipa_fast.data.loader import images_of
from pipa_fast.evaluation.command_line import add_device_argument, device_of, run_command
from pipa_fast.evaluation.comparison import (
    Group,
    comparison_table,
    group_table,
    grouped,
    notes,
)
from pipa_fast.evaluation.comparison_page import MOST, Pictures, page
from pipa_fast.evaluation.panels import predict_sample, spread_indices
from pipa_fast.evaluation.runs import read_runs
from pipa_fast.program import make_parser, refuse_given


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    made = make_parser(
        "compare",
        "Print mIoU and IoU per class [percent] of runs, with differences to the first, and write "
        "a page that shows them side by side. Runs that differ in their seed alone are one group, "
        "with its standard deviation. A converted run has the scores that evaluate wrote of it.",
        "runs/streets_source runs/streets_pipa --out comparison.html",
    )
    made.add_argument("runs", nargs="+", type=Path, help="run folders: runs/streets_source ...")
    made.add_argument("--out", type=Path, help="page to write (default: none)")
    made.add_argument(
        "--images",
        type=int,
        default=4,
        help="validation images on the page, which each group's first run segments (default: 4)",
    )
    add_device_argument(made)
    return made


def pictures_of(groups: Sequence[Group], count: int, device: str) -> list[Pictures]:
    """Return images of the first run's validation split as each group's first run segments them.

    Raises:
        ValueError: runs with other targets, or a folder without its network.
    """
    from pipa_fast.training.checkpoint import load_run

    loaded = [load_run(group.runs[0].path) for group in groups]
    targets = sorted({config.data.target for _, config in loaded})
    if len(targets) > 1:
        raise ValueError(f"runs have other targets ({', '.join(targets)}); give --images 0")
    place, first = device_of(device), loaded[0][1]
    dataset, shown = images_of(first.data, "target", "val"), []
    for index in spread_indices(len(dataset), count):
        sample, predictions = dataset[index], {}
        for group, (network, config) in zip(groups, loaded, strict=True):
            network.to(place)
            view = config.evaluation.view
            labels, _ = predict_sample(network, sample=sample, device=place, **view)
            predictions[group.name] = labels
        shown.append(Pictures(sample.name, sample.image, sample.label, predictions))
    return shown


def run(options: argparse.Namespace, console: Console) -> None:
    """Print and write what the command line asks for."""
    if options.images < 0:
        raise ValueError(f"--images must be a count, 0 for none; got {options.images}")
    if options.out is None:
        refuse_given(options, parser(), ("images", "device"), "without --out there is no page")
    runs = read_runs(options.runs)
    groups = grouped(runs)
    console.print(comparison_table(runs))
    if any(len(group.runs) > 1 for group in groups):
        console.print(group_table(groups))
    for line in notes(runs):
        console.print(line, highlight=False, soft_wrap=True)
    for folder in options.runs:
        if (folder / "report.html").is_file():
            console.print(f"report: {folder / 'report.html'}", highlight=False, soft_wrap=True)
    if options.out is None:
        return
    if len(groups) > MOST:
        raise ValueError(f"--out shows up to {MOST} groups of runs; got {len(groups)}")
    names = [group.name for group in groups]
    if len(set(names)) < len(names):
        raise ValueError(f"groups need names of their own; got {', '.join(names)}: rename a folder")
    pictures = pictures_of(groups, options.images, options.device) if options.images else []
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(page(groups, pictures), encoding="utf-8")
    console.print(f"wrote {options.out}", highlight=False, soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the process's exit code. A bad one exits with 2."""
    return run_command(parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
