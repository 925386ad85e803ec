# SPDX-License-Identifier: Apache-2.0
"""Options that evaluate, predict and export have in common."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from pipa_fast.checks import first_line
from pipa_fast.evaluation.inference import SlidingWindow
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
    """Add the options of sliding-window prediction and the device."""
    pair: dict[str, Any] = {"type": int, "nargs": 2, "metavar": ("H", "W")}
    made.add_argument("--crop", **pair, help="predict in sliding windows of this size [pixels]")
    made.add_argument("--stride", **pair, help="distance of the windows (default: 2/3 of the crop)")
    made.add_argument(
        "--window-batch", type=int, metavar="N", help="windows in one forward pass (default: 4)"
    )
    made.add_argument(
        "--flip", action="store_true", help="average the probabilities of image and mirror image"
    )
    add_device_argument(made)


def add_device_argument(made: argparse.ArgumentParser) -> None:
    """Add the option of the device."""
    made.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 (default: a GPU if any)")


def window_of(options: argparse.Namespace) -> SlidingWindow | None:
    """Return the sliding window that the options ask for.

    Raises:
        ValueError: a stride or a batch without a crop, or sizes that leave pixels out.
    """
    if options.crop is None:
        for name in ("stride", "window_batch"):
            if (value := getattr(options, name)) is not None:
                option = f"--{name.replace('_', '-')}"
                raise ValueError(f"{option} needs --crop; got {option} {value} alone")
        return None
    height, width = options.crop
    stride = None if options.stride is None else (options.stride[0], options.stride[1])
    batch = {} if options.window_batch is None else {"batch": options.window_batch}
    return SlidingWindow.of((height, width), stride, **batch)


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
