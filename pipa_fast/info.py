# SPDX-License-Identifier: Apache-2.0
"""What is installed, what this machine has, and which backend of each op can run and why not.

python -m pipa_fast.info
python -m pipa_fast.info --report      # as a bug report wants it
"""

import argparse
import importlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

import pipa_fast
from pipa_fast.ops.backends import OPS, backends_explained, cuda_version
from pipa_fast.program import make_parser

VARIABLES = (
    "PIPA_FAST_BACKEND",
    "PIPA_FAST_HOPPER",
    "PIPA_FAST_CUDA",
    "PIPA_FAST_GATHER_BYTES",
    "OMP_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "TRITON_INTERPRET",
)
LIBRARIES = (
    "numpy",
    "transformers",
    "kornia",
    "Pillow",
    "jsonargparse",
    "tensorboard",
    "matplotlib",
    "safetensors",
    "nvtx",
    "triton",
)


def versions() -> dict[str, str]:
    """Return the versions of pipa_fast, Python, torch and libraries; "absent" for a missing one."""
    found = {
        "pipa_fast": pipa_fast.__version__,
        "python": f"{platform.python_version()} ({platform.system()} {platform.machine()})",
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}",
    }
    for library in LIBRARIES:
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            found[library] = "absent"
    return found


def machine() -> dict[str, str]:
    """Return threads, instruction sets and GPUs that kernels can use here."""
    found = {"threads": str(torch.get_num_threads())}
    try:
        host = importlib.import_module("pipa_fast._host")
    except ImportError:
        pass
    else:
        found["CPU"] = ", ".join(name for name, has in host.cpu_features().items() if has)
    for index in range(torch.cuda.device_count()):
        name = torch.cuda.get_device_name(index)
        major, minor = torch.cuda.get_device_capability(index)
        found[f"cuda:{index}"] = f"{name}, sm_{major}{minor}"
    if not torch.cuda.is_available():
        built = torch.version.cuda is not None
        found["GPU"] = "none" if built else "none that this torch can use: it is built without CUDA"
    return found


def extensions() -> dict[str, str]:
    """Return what was compiled into each native module, or why it does not load."""
    found = {}
    for module in ("_C", "_host", "_CUDA"):
        try:
            loaded = importlib.import_module(f"pipa_fast.{module}")
        except ImportError as error:
            found[f"pipa_fast.{module}"] = f"absent: {error}"
            continue
        found[f"pipa_fast.{module}"] = "loaded"
        if module == "_C":  # which tells nothing of itself
            continue
        compiled = loaded.compiled()
        if module == "_host":
            found["variants"] = f"{', '.join(compiled['isa'])}; best here {loaded.best_isa()}"
            found["compiler"] = compiled["compiler"]
        else:
            found |= cuda_kernels(compiled, loaded.why_not())
        if compiled["version"] != pipa_fast.__version__:
            found[f"pipa_fast.{module}"] = (
                f"built for {compiled['version']}: run "
                "`pip install --no-build-isolation -e .` again"
            )
    return found


def cuda_kernels(compiled: dict[str, Any], why_not: str) -> dict[str, str]:
    """Return for which GPUs, numbers and rows the CUDA kernels were compiled, and by what they run.

    Args:
        compiled: what `_CUDA.compiled()` returns.
        why_not: why their runtime finds no device, "" where it does.
    """
    archs = [f"sm_{arch}" for arch in compiled["archs"].split()]
    archs += [f"PTX of {compiled['ptx']} for newer ones"] if compiled["ptx"] else []
    runtime, driver = (cuda_version(compiled[key]) for key in ("runtime", "driver"))
    return {
        "CUDA architectures": ", ".join(archs),
        "CUDA numbers": ", ".join(compiled["numbers"].split()),
        "CUDA widths": f"rows of up to {', '.join(compiled['widths'].split())} bytes",
        "CUDA runtime": f"{runtime}; driver {driver}" + (f": {why_not}" if why_not else ""),
    }


def devices() -> list[str]:
    """Return the kinds of device whose backends are of interest here."""
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def backends() -> list[tuple[str, str, str, str]]:
    """Return (op, device, backend, why it cannot run or "") for every op, best backend first."""
    return [
        (op, device, backend, reason)
        for op in OPS
        for device in devices()
        for backend, reason in backends_explained(op, device).items()
    ]


def report() -> list[tuple[str, list[str], list[list[str]]]]:
    """Return all of it as (title, columns, rows)."""
    pairs = [("versions", versions()), ("machine", machine()), ("native extensions", extensions())]
    tables = [
        (title, ["name", "value"], [list(row) for row in found.items()]) for title, found in pairs
    ]
    rows = [
        [op, device, backend, "no" if reason else "yes", reason]
        for op, device, backend, reason in backends()
    ]
    return [*tables, ("backends", ["op", "device", "backend", "runs", "why not"], rows)]


def plain(tables: list[tuple[str, list[str], list[list[str]]]]) -> str:
    """Return tables as text: one line a row, columns padded, nothing cut, for logs and issues."""
    lines: list[str] = []
    for title, _, rows in tables:
        widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
        lines.append(f"# {title}")
        for row in rows:
            cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
            lines.append("  ".join(cells).rstrip())
        lines.append("")
    return "\n".join(lines)


def surroundings() -> dict[str, str]:
    """Return what of the system and the environment may change what runs: no names, no paths."""
    found = {"system": platform.platform(), "C library": " ".join(platform.libc_ver())}
    found |= {name: value for name, value in os.environ.items() if name in VARIABLES}
    tools = {"compiler": "c++", "nvcc": "nvcc", "driver": "nvidia-smi"}
    return found | {name: _version_of(tool) for name, tool in tools.items()}


def _version_of(tool: str) -> str:
    """Return the first line that a tool says of its version; "absent" where there is none."""
    path = shutil.which(tool)
    if path is None:
        return "absent"
    words = [path, "--version"]
    try:
        said = subprocess.run(words, capture_output=True, text=True, timeout=20)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"does not answer: {type(error).__name__}"
    lines = [line for line in said.stdout.splitlines() if any(c.isdigit() for c in line)]
    return lines[0] if lines else "says nothing"


def bug_report(tables: list[tuple[str, list[str], list[list[str]]]]) -> str:
    """Return the tables as a folded block of Markdown, below what else a report should say."""
    rows = [list(row) for row in surroundings().items()]
    text = plain([*tables, ("surroundings", ["name", "value"], rows)])
    # the system names the file where an extension does not load
    here = str(Path(pipa_fast.__file__).parent)
    text = text.replace(here, "pipa_fast").replace(str(Path.home()), "~")
    return (
        "**What I ran** (the whole command, or a few lines of Python)\n\n\n"
        "**What I expected, and what came instead** (the whole message)\n\n\n"
        f"<details><summary>pipa-fast info --report</summary>\n\n```text\n{text}```\n\n</details>\n"
    )


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    made = make_parser(
        "info",
        "Tell what is installed, what this machine has, and which backend of each op can run and "
        "why not.",
        "--report > report.md",
    )
    made.add_argument(
        "--report",
        action="store_true",
        help="as Markdown to paste into a bug report, with compilers and the environment's own "
        "settings; it holds no names and no paths",
    )
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Print the report: coloured tables on a terminal, plain text elsewhere."""
    options, tables = parser().parse_args(argv), report()
    if options.report:
        print(bug_report(tables), end="")
        return 0
    if not sys.stdout.isatty():
        print(plain(tables), end="")
        return 0
    console = Console()
    for title, columns, rows in tables:
        table = Table(*columns, title=title, title_justify="left")
        for row in rows:
            table.add_row(*map(Text, row), style="dim" if "no" in row else None)
        console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
