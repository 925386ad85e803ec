# SPDX-License-Identifier: Apache-2.0
"""Options that evaluate, predict and export have in common."""

import argparse
import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from pipa_fast.checks import first_line
from pipa_fast.evaluation.protocol import DTYPES
from pipa_fast.program import CTRL_C


def add_weights_arguments(made: argparse.ArgumentParser) -> None:
    """Add the options of a run's folder and of which weights to take."""
    made.add_argument("--run", type=Path, required=True, help="run folder: runs/streets_pipa")
    made.add_argument(
        "--checkpoint",
        type=Path,
        help="weights to take instead of the run's last: checkpoints/step-0030000.pt of it, or a "
        ".safetensors (default: of a run that has not ended, its newest checkpoint)",
    )
    made.add_argument(
        "--branch",
        choices=("student", "teacher"),
        help="whose weights, of a checkpoint or of the run's last step (default: student)",
    )


def add_inference_arguments(made: argparse.ArgumentParser) -> None:
    """Add the options of how images are seen, each in place of the run's own, and the device."""
    pair: dict[str, Any] = {"type": int, "nargs": 2, "metavar": ("H", "W")}
    made.add_argument(
        "--crop", **pair, help="see windows of this size [pixels] (default: the run's)"
    )
    made.add_argument(
        "--stride",
        **pair,
        help="distance of the windows (default: the run's; 2/3 of --crop if it has none)",
    )
    made.add_argument(
        "--window-batch",
        type=int,
        metavar="N",
        help="windows in one forward pass (default: the run's)",
    )
    made.add_argument(
        "--flip",
        action=argparse.BooleanOptionalAction,
        help="average the probabilities of image and mirror image (default: as the run does)",
    )
    made.add_argument(
        "--precision",
        choices=("auto", *DTYPES),
        help="what the network computes in; auto: half precision where the device computes in it "
        "(default: the run's)",
    )
    add_device_argument(made)


def add_device_argument(made: argparse.ArgumentParser) -> None:
    """Add the option of the device."""
    made.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 (default: a GPU if any)")


def as_asked(options: argparse.Namespace, own: Any) -> Any:
    """Return how a run sees images, with the fields that the options give in place of its own.

    Args:
        own: the run's `training.config.EvaluationConfig`, which is left as it is.

    Raises:
        ValueError: windows' stride or batch for a run without windows, or sizes that leave pixels
            out.
    """
    fields = ("crop", "stride", "window_batch", "flip", "batch_size")
    given = {name: getattr(options, name, None) for name in fields}
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items() if v is not None}
    if "crop" not in given and own.crop is None:
        for name in ("stride", "window_batch"):
            if name in given:
                option = f"--{name.replace('_', '-')}"
                raise ValueError(
                    f"{option} needs --crop, as the run sees images whole; "
                    f"got {option} {getattr(options, name)} alone"
                )
    try:
        return dataclasses.replace(own, **given)
    except ValueError as error:
        message = re.sub(
            r"evaluation\.(\w+)", lambda found: f"--{found[1].replace('_', '-')}", str(error)
        )
        if "stride" not in given and message.startswith("--stride"):
            message += ", the run's own: give --stride too"
        raise ValueError(message) from error


def device_of(name: str) -> torch.device:
    """Return the named device; "auto" is a GPU where there is one.

    Raises:
        ValueError: no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"--device must be one that works here; got {name!r}: {first_line(error)}"
        ) from error
    return torch.device(name)


def run_command(
    cli: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace, Console], None],
    argv: Sequence[str] | None,
) -> int:
    """Parse and run; return the exit code. What `run` finds wrong exits with 2, as a bad option."""
    options = cli.parse_args(argv)
    try:
        run(options, Console(markup=False))  # names of folders may hold brackets
    except (ValueError, OSError) as error:
        cli.exit(2, f"error: {error}\n")
    except KeyboardInterrupt:
        cli.exit(CTRL_C, "stopped\n")
    return 0
