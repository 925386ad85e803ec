# SPDX-License-Identifier: Apache-2.0
"""Write a trained run as one file that runs without this package: ONNX, or torch.export's .pt2.

python -m pipa_fast.export --run runs/streets_pipa --out streets.onnx
python -m pipa_fast.export --run runs/streets_pipa --out streets.pt2

The file takes images [B, 3, H, W], float32 RGB in [0, 1], and returns logits [B, K, H, W], float32
by train id. Batch and size are free; height and width must be multiples of the side of the
encoder's coarsest cell (16 pixels for streets_s, 32 for MiT) and at least two of them. Pad other
images, and cut the logits. A network whose graph depends on the image's size is written for one
size, `--size`.
"""

import argparse
import importlib.util
import json
import math
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from pipa_fast.data.labels import CLASSES
from pipa_fast.evaluation.command_line import add_weights_arguments, run_command
from pipa_fast.models import size_multiple
from pipa_fast.program import make_parser

SUFFIXES = (".onnx", ".pt2")
Shape = tuple[int, int, int, int]


class Segmenter(nn.Module):
    """What is exported: the network, and its logits brought to the images' size."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, K, H, W] float32 for images [B, 3, H, W] float32 in [0, 1]."""
        logits = self.network(images).logits.float()
        return F.interpolate(logits, size=images.shape[2:], mode="bilinear", align_corners=False)


def trace(network: nn.Module, *, size: tuple[int, int] | None = None) -> ExportedProgram:
    """Return the network's graph, for any size or for `size` alone, and for any batch.

    Raises:
        ValueError: a size that is no multiple, no size where the graph depends on it, or a graph
            that depends on the batch.
    """
    multiple = size_multiple(network)
    windows = getattr(network, "detail_size", None) or getattr(network.encoder, "windowed", False)
    if size is None and windows:
        # torch.export would settle on HRDA's windows in the example without a complaint, and does
        # not come to an end of Swin's
        raise ValueError("this network has other windows for every image size; give --size H W")
    shapes: dict[int, Any] = {0: Dim("batch", min=1)}
    if size is None:
        # One cell would not do: it is repeated instead of interpolated, which is another graph.
        shapes[2] = multiple * Dim("rows", min=2)
        shapes[3] = multiple * Dim("columns", min=2)
    elif size[0] % multiple or size[1] % multiple or min(size) < 1:
        raise ValueError(f"--size must be positive multiples of {multiple}; got {size}")
    height, width = size or (4 * multiple, 6 * multiple)
    example = torch.zeros(2, 3, height, width)  # a batch of 1 would be taken for a constant
    try:
        with torch.no_grad():
            return torch.export.export(
                Segmenter(network).eval(), (example,), dynamic_shapes={"images": shapes}
            )
    except Exception as error:  # torch raises a dozen types, its own and Python's
        what = "batch" if size else "batch and image size; give --size H W"
        raise ValueError(
            f"this network has no graph for every {what}: {textwrap.shorten(str(error), 300)}"
        ) from error


def save(program: ExportedProgram, path: Path, facts: dict[str, str]) -> None:
    """Write the graph in the format of `path`'s suffix, `facts` in the file's metadata.

    Raises:
        ValueError: the libraries for ONNX are missing.
    """
    if path.suffix == ".pt2":
        torch.export.save(program, path, extra_files={"pipa_fast.json": json.dumps(facts)})
        return
    missing = [name for name in ("onnx", "onnxscript") if not importlib.util.find_spec(name)]
    if missing:
        raise ValueError(
            f"ONNX needs {' and '.join(missing)}: pip install 'pipa_fast[export]', or write a .pt2"
        )
    try:
        made: Any = torch.onnx.export(
            program, input_names=["images"], output_names=["logits"], dynamo=True, verbose=False
        )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = textwrap.shorten(str(error.__cause__ or error), 300)
        raise ValueError(
            f"torch cannot write this network as ONNX; a .pt2 may do: {reason}"
        ) from error
    made.model.metadata_props.update(facts)
    made.save(path, external_data=False)


def load(path: Path) -> Callable[[Tensor], Tensor] | None:
    """Return the written file as a function of images; None where nothing here runs ONNX."""
    if path.suffix == ".pt2":
        try:
            return torch.export.load(path).module()
        except RuntimeError as error:
            raise ValueError(
                "torch cannot read what it wrote of this network's graph; --size or an .onnx may do"
            ) from error
    if not importlib.util.find_spec("onnxruntime"):
        return None
    import onnxruntime  # pyright: ignore[reportMissingImports]

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def largest_difference(
    written: Callable[[Tensor], Tensor], network: nn.Module, shapes: Sequence[Shape]
) -> float:
    """Return the largest difference of logits over noise of `shapes`, as a share of the largest
    logit; infinite where a shape differs or a number is not finite.

    Raises:
        ValueError: what was written cannot be run on images of such a shape.
    """
    ours = Segmenter(network).eval()
    worst = 0.0
    for seed, shape in enumerate(shapes):
        images = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            expected = ours(images)
            try:
                got = written(images)
            except Exception as error:  # a guard of torch.export, or any of the runtime's own
                reason = textwrap.shorten(str(error), 300)
                raise ValueError(
                    f"the exported network cannot see images {list(shape)}; --size may help: "
                    f"{reason}"
                ) from error
        if got.shape != expected.shape or not torch.isfinite(got).all():
            return math.inf
        worst = max(worst, float((got - expected).abs().max() / expected.abs().max()))
    return worst


def write(
    network: nn.Module,
    path: Path,
    *,
    size: tuple[int, int] | None = None,
    tolerance: float = 1e-3,
    names: Sequence[str] = CLASSES,
) -> float | None:
    """Export a network in evaluation mode to `path`, and return how far the file is from it.

    What was written is run on images of several shapes, none of which it was traced with, before
    it gets its name. The distance is `largest_difference`'s; None where nothing here runs ONNX.

    Raises:
        ValueError: an unknown suffix, a network that cannot be traced, missing libraries, or a
            file that differs by more than `tolerance`, which is then removed.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"--out must end with {' or '.join(SUFFIXES)}; got {str(path)!r}")
    program = trace(network, size=size)
    m = size_multiple(network)
    shapes: list[Shape] = [(1, 3, 2 * m, 3 * m), (3, 3, 5 * m, 2 * m)]
    facts = {"input": "RGB in [0, 1]", "classes": ", ".join(names), "multiple": str(m)}
    if size is not None:
        shapes = [(1, 3, *size), (3, 3, *size)]
        facts["size"] = f"{size[0]} x {size[1]}"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        save(program, temporary, facts)
        written = load(temporary)
        distance = None if written is None else largest_difference(written, network, shapes)
        if distance is not None and not distance <= tolerance:
            raise ValueError(
                f"the exported network differs by {distance:.1e} of the largest logit, more than "
                f"the tolerance {tolerance:g}; {path.name} was not written"
            )
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return distance


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    made = make_parser(
        "export",
        "Write a run's network as a folder that the hub and from_pretrained take, or as ONNX or "
        "torch.export file, checked against it.",
        "--run runs/streets_pipa --out streets.onnx",
    )
    add_weights_arguments(made)
    made.add_argument(
        "--out",
        type=Path,
        required=True,
        help="file to write, .onnx or .pt2; a name without an ending is a folder of weights, "
        "settings and a model card, which pipa_fast.from_pretrained loads",
    )
    made.add_argument(
        "--push",
        metavar="OWNER/NAME",
        help="upload the folder to this repository of the Hugging Face hub, private if it is new "
        "(default: upload nothing)",
    )
    made.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="for images of this size alone [pixels] (default: any)",
    )
    made.add_argument(
        "--tolerance",
        type=float,
        default=1e-3,
        help="largest difference allowed, as a share of the largest logit (default: 0.001)",
    )
    return made


def run(options: argparse.Namespace, console: Console) -> None:
    """Export what the command line asks for, and say how far it is from the network."""
    from pipa_fast.training.checkpoint import find_weights, load_run

    if not options.out.suffix:
        return write_folder(options, console)
    if options.push is not None:
        raise ValueError(f"--push takes a folder as --out, without an ending; got {options.out}")
    weights = find_weights(options.run, options.checkpoint, options.branch)
    network, config = load_run(options.run, weights)
    size = None if options.size is None else (options.size[0], options.size[1])
    tolerance, names = options.tolerance, config.class_names
    distance = write(network, options.out, size=size, tolerance=tolerance, names=names)
    m = size_multiple(network)
    takes = f"images of {size[0]} x {size[1]}" if size else f"images of multiples of {m} pixels"
    checked = (
        "not checked: pip install onnxruntime"
        if distance is None
        else f"differs by {distance:.1e} of the largest logit (tolerance {options.tolerance:g})"
    )
    console.print(
        f"wrote {options.out}, for {takes} in any number; {checked}",
        highlight=False,
        soft_wrap=True,
    )


def write_folder(options: argparse.Namespace, console: Console) -> None:
    """Write the folder that the command line asks for, and upload it where it does."""
    from pipa_fast.pretrained import CARD, push, save_pretrained
    from pipa_fast.training.checkpoint import find_weights

    if options.size is not None:
        raise ValueError("--size is for .onnx and .pt2: a folder's network takes any")
    if options.tolerance != parser().get_default("tolerance"):
        raise ValueError("--tolerance is for .onnx and .pt2: a folder has the run's own weights")
    weights = find_weights(options.run, options.checkpoint, options.branch)
    folder = save_pretrained(options.run, options.out, name=options.push, weights=weights)
    console.print(f"wrote {folder}; complete its {CARD}", highlight=False, soft_wrap=True)
    if options.push is not None:
        console.print(f"pushed: {push(folder, options.push)}", highlight=False, soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the process's exit code. A bad one exits with 2."""
    return run_command(parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
