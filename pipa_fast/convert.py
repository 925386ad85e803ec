# SPDX-License-Identifier: Apache-2.0
"""Make a run's folder of a checkpoint that DAFormer, HRDA, MIC, PiPa or SegFormer published.

python -m pipa_fast.convert latest.pth --recipe gta2cs_daformer --out runs/daformer_release
python -m pipa_fast.convert segformer.pth --recipe gta2cs_source --out RUN -- --model.head segformer

evaluate, predict and export take the folder as that of any run. The recipe names the network, the
dataset and how it is scored. What follows `--` changes its settings, as options of
`python -m pipa_fast.train` do.
"""

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from pipa_fast.checks import require
from pipa_fast.evaluation.command_line import run_command
from pipa_fast.models import build_network
from pipa_fast.models.published import load_published
from pipa_fast.program import make_parser
from pipa_fast.training import checkpoint
from pipa_fast.training.config import Config, load, merge, read_recipe


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser, of what comes before `--`."""
    made = make_parser(
        "convert",
        "Make a run's folder of a published checkpoint. Settings of the recipe follow after --, as "
        "for train: -- --model.encoder mit_b3",
        "latest.pth --recipe gta2cs_hrda --out runs/hrda",
        usage="%(prog)s FILE --recipe RECIPE --out FOLDER [--branch {student,teacher}] "
        "[--allow-partial] [-- SETTING ...]",
    )
    made.add_argument("file", type=Path, metavar="FILE", help="latest.pth, or a SegFormer's folder")
    made.add_argument("--recipe", required=True, help="recipe name or YAML file, of its network")
    made.add_argument("--out", type=Path, required=True, help="folder to write: runs/NAME")
    made.add_argument(
        "--branch",
        choices=("student", "teacher"),
        default="student",
        help="whose weights (default: student, which the releases evaluate)",
    )
    made.add_argument(
        "--allow-partial", action="store_true", help="take what fits; the rest stays random"
    )
    return made


def settings(recipe: str, words: Sequence[str]) -> Config:
    """Return the settings of a recipe and the options that change it, without encoder weights.

    Raises:
        ValueError: an unknown recipe or setting, or one that has no meaning here.
    """
    for word in words:
        if word.split("=")[0] == "--config":
            raise ValueError(f"{word} cannot follow --; the recipe is --recipe's")
    try:
        read = read_recipe(recipe)
    except ValueError as error:
        raise ValueError(f"--recipe: {error}") from error
    # the releases compute in float32, and so do the scores that theirs are compared with
    read = merge({"precision": "fp32"}, merge(read, {"model": {"weights": None}}))
    config = load(read, words)
    weights = config.model.weights
    require(weights is None, "model.weights", weights, "left out, as FILE brings the weights")
    return config


def run(options: argparse.Namespace, console: Console, *, words: Sequence[str] = ()) -> None:
    """Convert what the command line asks for, and say what became of each weight."""
    out: Path = options.out
    if checkpoint.holds_run(out) or (out / checkpoint.SETTINGS).is_file():
        raise ValueError(f"--out must be a folder without a run; {out} holds one")
    config = settings(options.recipe, words)
    torch.manual_seed(config.seed)  # of what a partial file leaves random
    network = build_network(config.model)
    report = load_published(options.file, network, branch=options.branch, allow_partial=True)
    say = functools.partial(console.print, highlight=False, soft_wrap=True)
    say(report.in_full())
    if not (report.complete or options.allow_partial):
        raise ValueError(
            f"{options.file} does not fit the network of --recipe {options.recipe}: {report}. "
            "--allow-partial takes what fits"
        )
    out.mkdir(parents=True, exist_ok=True)
    checkpoint.export(out, network)
    part = "" if report.complete else ", in part"
    note = f"weights: those of the {options.branch} in {options.file.name!r}{part}"
    checkpoint.write_settings(out, config, note=note)
    say(f"wrote {out}, to be scored by python -m pipa_fast.evaluate --run {out}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the process's exit code. A bad one exits with 2."""
    words = list(sys.argv[1:] if argv is None else argv)
    end = words.index("--") if "--" in words else len(words)
    options = [word for word in words[:end] if word.startswith("--")]
    if early := [word for word in options if "." in word.split("=")[0]]:
        parser().error(f"settings of the recipe follow after --, as in -- {' '.join(early)} ...")
    return run_command(parser(), functools.partial(run, words=words[end + 1 :]), words[:end])


if __name__ == "__main__":
    sys.exit(main())
