# SPDX-License-Identifier: Apache-2.0
"""Score a trained run on a dataset, class by class.

python -m pipa_fast.evaluate --run runs/streets_pipa
python -m pipa_fast.evaluate --run runs/synthia_pipa --dataset cityscapes --classes 16
python -m pipa_fast.evaluate --run runs/streets_pipa --report --baseline runs/streets_source
torchrun --standalone --nproc-per-node 2 -m -- pipa_fast.evaluate --run runs/streets_pipa
"""

import argparse
import copy
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from torch import nn

from pipa_fast.checks import require
from pipa_fast.data.datasets import build_dataset
from pipa_fast.data.labels import CLASS_SETS
from pipa_fast.data.loader import images_of
from pipa_fast.evaluation.classes import conventions, scored_classes
from pipa_fast.evaluation.command_line import (
    add_inference_arguments,
    add_weights_arguments,
    as_asked,
    device_of,
    run_command,
)
from pipa_fast.evaluation.inference import EvalResult, evaluate
from pipa_fast.evaluation.protocol import DTYPES, in_words, precision_on, protocol_of
from pipa_fast.evaluation.report import write_report
from pipa_fast.program import make_parser, refuse_given


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    made = make_parser(
        "evaluate",
        "Print mIoU and IoU per class [percent] of a run, and write them as JSON.",
        "--run runs/streets_pipa --flip",
    )
    add_weights_arguments(made)
    made.add_argument("--dataset", help="dataset's name (default: the run's target)")
    made.add_argument("--root", help="the dataset's folder (default: the run's, of its target)")
    made.add_argument("--split", default="val", help="split of the dataset (default: val)")
    made.add_argument(
        "--classes",
        choices=["dataset", *CLASS_SETS],
        help="score the dataset's own classes, Cityscapes' 19, or SYNTHIA's 16 or 13 (default: as "
        "the run did)",
    )
    made.add_argument(
        "--output",
        type=Path,
        help="JSON to write (default: RUN/evaluation_DATASET_SPLIT.json, of a teacher "
        "RUN/evaluation_DATASET_SPLIT_teacher.json)",
    )
    made.add_argument(
        "--batch-size",
        type=int,
        help="images that are read at once; fewer of those above 2048 x 1024 (default: the run's)",
    )
    add_inference_arguments(made)
    made.add_argument(
        "--report", action="store_true", help="make RUN/report.html and panels.png anew"
    )
    made.add_argument("--baseline", type=Path, help="source-only run that the report compares with")
    return made


def score_table(result: EvalResult, title: str) -> Table:
    """Return IoU per class and mIoU [percent], with bars."""
    table = Table(title=title, title_justify="left")
    table.add_column("class")
    table.add_column("IoU [%]", justify="right")
    table.add_column("", no_wrap=True)
    for name, value in result.iou.items():
        table.add_row(name, f"{value:.1f}", "━" * round(value / 4))
    table.add_section()
    table.add_row("mIoU", f"{result.miou:.1f}", "━" * round(result.miou / 4), style="bold")
    return table


WAYS = {
    "others_ignored": "other classes' pixels left out of the truth",
    "rescaled": "mIoU over 19 classes x 19/16, as DAFormer and its successors count",
}


def other_ways(miou: dict[str, float]) -> list[str]:
    """Return a line for each convention whose mIoU [percent] is not the mean's as printed."""
    shown = {way: f"{value:.1f}" for way, value in miou.items()}
    return [
        f"mIoU {shown[way]}: {text}"
        for way, text in WAYS.items()
        if way in shown and shown[way] != shown["mean"]
    ]


def load_teacher(network: nn.Module, run: Path) -> nn.Module | None:
    """Return the teacher of the run's newest checkpoint, None where it has none.

    Raises:
        ValueError: its weights do not fit the network.
    """
    from pipa_fast.training import checkpoint

    state = checkpoint.load_newest(run)
    if state is None or state.get("teacher") is None:
        return None
    teacher = copy.deepcopy(network)
    prefix = "network."
    weights = {k.removeprefix(prefix): v for k, v in state["teacher"].items()}
    checkpoint.fit(teacher, weights, run / "checkpoints")
    return teacher


def rebuild_report(options: argparse.Namespace, network: nn.Module, config: Any) -> Path:
    """Write the run's report from its folder.

    Raises:
        ValueError: the options ask to score something else than the run's own end result.
    """
    others = ("dataset", "root", "split", "classes", "checkpoint", "branch", "output")
    others += ("batch_size", "flip", "precision")
    refuse_given(options, parser(), others, "--report shows the run's own results")
    from pipa_fast.training.checkpoint import before_training, load_run

    device, teacher = device_of(options.device), load_teacher(network, options.run)
    return write_report(
        options.run,
        network=network,
        dataset=images_of(config.data, "target", "val"),
        teacher=teacher,
        baseline_dir=options.baseline,
        baseline=None if options.baseline is None else load_run(options.baseline)[0],
        initial=before_training(config) if options.baseline is None else None,
        device=device,
        **as_asked(options, config.evaluation).view,
    )


def start(options: argparse.Namespace) -> tuple[torch.device, bool]:
    """Join torchrun's other ranks, if any; return the device, and whether this rank is the first.

    Raises:
        ValueError: no such device, or an option that several ranks cannot follow.
    """
    from pipa_fast.training import distributed

    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks == 1:
        return device_of(options.device), True
    if options.report:
        raise ValueError(f"--report is made by one process; torchrun started {ranks}")
    if options.device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"--device must be cpu or cuda under torchrun; got {options.device!r}")
    world = distributed.start(options.device)
    return world.device, world.is_main


def weights_of(options: argparse.Namespace) -> Any:
    """Return the weights that the options ask for, as training.checkpoint.find_weights does.

    Raises:
        ValueError: as there; ranks found other ones, as a run at work makes new ones.
    """
    from pipa_fast.training.checkpoint import find_weights

    weights = find_weights(options.run, options.checkpoint, options.branch)
    if dist.is_initialized():
        found: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(found, str(weights.path))
        expected = "given, as the run is at work and ranks found other newest ones"
        require(len(set(found)) == 1, "--checkpoint", found, expected)
    return weights


def run(options: argparse.Namespace, console: Console) -> None:
    """Load, score, print and write what the command line asks for.

    Under torchrun the ranks share the images, and the first one prints and writes.
    """
    from pipa_fast.training.checkpoint import EXPORTED, load_run

    if options.baseline is not None and not options.report:
        raise ValueError("--baseline is for the report; add --report")
    device, first = start(options)
    console.quiet = not first
    weights = weights_of(options)
    network, config = load_run(options.run, weights)
    network.to(device)
    if options.report:
        console.print(f"wrote {rebuild_report(options, network, config)}", soft_wrap=True)
        return
    name = options.dataset or config.data.target
    root = options.root
    if root is None and name == config.data.target:
        root = config.data.target_root
    classes, own = options.classes or config.evaluation.classes, config.data.classes
    for option, given, only in (("--dataset", name, "own"), ("--classes", classes, "dataset")):
        if own is not None and given != only:
            raise ValueError(f"{option} must be {only} for a run with data.classes; got {given}")
    dataset = build_dataset(name, options.split, root, classes=own)
    seen = as_asked(options, config.evaluation)
    precision = precision_on(options.precision or config.precision, device)
    protocol = protocol_of(seen.view, precision)
    console.print(in_words(protocol), highlight=False, soft_wrap=True)
    result = evaluate(
        network,
        dataset,
        batch_size=seen.batch_size,
        device=device,
        dtype=DTYPES[precision],
        **seen.view,
        classes=scored_classes(classes, dataset.eval_classes),
        names=config.class_names,
    )
    console.print(score_table(result, f"{options.run}{weights.label} on {name} {options.split}"))
    ways = {} if classes == "dataset" else conventions(result.confusion, classes)
    for line in other_ways(ways):
        console.print(line, highlight=False, soft_wrap=True)
    end = "_teacher" if weights.branch == "teacher" else ""
    output = options.output or options.run / f"evaluation_{name}_{options.split}{end}.json"
    record = {
        **result.summary(),
        "recipe": config.recipe,
        "seed": config.seed,
        "dataset": name,
        "split": options.split,
        "classes": classes,
        "conventions": {way: round(value, 4) for way, value in ways.items()},
        "checkpoint": None if weights.path == options.run / EXPORTED else str(weights.path),
        "branch": weights.branch,
        **protocol,
    }
    if first:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(record, indent=2) + "\n")
    console.print(f"wrote {output}", highlight=False, soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the process's exit code. A bad one exits with 2."""
    from pipa_fast.training import distributed

    try:
        return run_command(parser(), run, argv)
    finally:
        distributed.end()


if __name__ == "__main__":
    sys.exit(main())
