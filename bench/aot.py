# SPDX-License-Identifier: Apache-2.0
"""Compiles the Triton kernels ahead of time, without a GPU, and lists what they take of a chip.

python -m bench.aot                              # every shipped depth, dtype and chip
python -m bench.aot pixel_contrast --chips 90 --dims 256 --dtypes bfloat16
python -m bench.aot --markdown docs/triton.md    # the committed table

Each op runs its own host code with launches recorded instead of started, so that what is compiled
is what a GPU would get; "tf32" is float32 where torch takes its own products in TF32. Exit status 1
tells of a kernel that spills registers or wants more shared memory than its chip has.
TRITON_INTERPRET must not be set: it makes kernels that do not compile. Triton keeps what it has
compiled (~/.triton), so that a second call has only the machine code to read.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Container
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from importlib import import_module
from itertools import product, repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.program import make_parser
from pipa_fast.program import cores
from pipa_fast.reference.pixel_contrast import Rows, Settings

CHIPS = (80, 89, 90)
DIMS = (64, 128, 256, 512)
# What a column of the table is called: the features' dtype, and torch's precision of products.
FORMATS = {
    "bfloat16": (torch.bfloat16, "ieee"),
    "float16": (torch.float16, "ieee"),
    "tf32": (torch.float32, "tf32"),
    "float32": (torch.float32, "ieee"),
}
TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.bool: "i1",
}
ALIGNED = [["tt.divisibility", 16]]


class Launch(NamedTuple):
    """A kernel as an op would start it."""

    kernel: Any
    tile: Any
    arguments: tuple[Any, ...]
    constants: dict[str, Any]


class Row(NamedTuple):
    """What a compiled kernel takes."""

    op: str
    kernel: str
    chip: int
    dim: int
    dtype: str
    tile: tuple[int, int, int, int]  # rows, columns, warps, stages
    registers: int  # of a thread
    spills: int  # loads and stores of local memory in the machine code
    shared: int  # bytes of a block
    tensor_cores: str  # their instructions, with how often each stands in the machine code

    def fault(self, limits: dict[int, int]) -> str:
        """Return what makes the kernel unfit for its chip, "" where nothing does."""
        if self.spills:
            return f"spills ({self.spills} local loads and stores)"
        if self.shared > limits[self.chip]:
            return f"wants {self.shared} bytes of shared memory of {limits[self.chip]}"
        return ""


def _pixel_contrast(dim: int, dtype: torch.dtype) -> None:
    kernels = import_module("pipa_fast.kernels.pixel_contrast")
    for n in (1024, 8192):  # few rows, and many
        x, labels = F.normalize(torch.randn(n, dim), dim=1).to(dtype), torch.arange(n) % 16
        for denominator in ("negatives", "all"):
            settings = (0.1, denominator, 255)
            _, z, u = kernels.forward(x, labels, None, *settings)
            kernels.backward(torch.ones(()), x, labels, None, z, u, *settings)
    _pixel_contrast_ranks(dim, dtype)


def _pixel_contrast_ranks(dim: int, dtype: torch.dtype) -> None:
    """Rows that are their own keys, and keys of other ranks."""
    kernels = import_module("pipa_fast.kernels._pixel_contrast_ranks")
    x, labels = F.normalize(torch.randn(1024, dim), dim=1).to(dtype), torch.arange(1024) % 16
    rows = Rows(x, labels, *torch.rand(3, 1024))
    for keys in (None, rows):
        for denominator in ("negatives", "all"):
            settings = Settings(0.1, denominator, 255)
            kernels.denominators(rows, keys, settings)
            kernels.positives(rows, keys, settings)
            kernels.pulls(rows, keys, settings)


def _patch_consistency(dim: int, dtype: torch.dtype) -> None:
    kernels = import_module("pipa_fast.kernels.patch_consistency")
    n, m = 2048, 4096
    rows = [torch.randn(count, dim).to(dtype) for count in (n, n, m)]
    labels = [torch.arange(count) % 16 for count in (n, m)]
    for temperature in (0.1, 0.05):  # float16 holds e as it is, and relative to the largest
        kernels.forward(*rows, *labels, torch.ones(n), temperature)
    kernels.forward(*rows, *labels, None, 0.1)


def _upsampled_cross_entropy(dim: int, dtype: torch.dtype) -> None:
    kernels = import_module("pipa_fast.kernels.upsampled_cross_entropy")
    logits, labels = torch.randn(1, dim, 16, 16).to(dtype), torch.zeros(1, 64, 64).long()
    for weights in (None, torch.ones(labels.shape)):
        for gradient in (True, False):
            kernels.forward(logits, labels, weights, 255, False, gradient)


def _pseudo_labels(dim: int, dtype: torch.dtype) -> None:
    kernels = import_module("pipa_fast.kernels.pseudo_labels")
    kernels.forward(torch.randn(1, dim, 16, 16).to(dtype), 64, 64, 0.9)


# Runs an op's forward and backward on CPU tensors of some depth and dtype, in every form that has
# kernels of its own.
CALLS: dict[str, Callable[[int, torch.dtype], None]] = {
    "pixel_contrast": _pixel_contrast,
    "patch_consistency": _patch_consistency,
    "upsampled_cross_entropy": _upsampled_cross_entropy,  # dim: classes
    "pseudo_labels": _pseudo_labels,  # dim: classes
}


def recorded(op: str, chip: int, dim: int, name: str) -> list[Launch]:
    """Return every launch of an op on some chip in one of FORMATS, none of them started."""
    shared = import_module("pipa_fast.kernels._launch")
    found: list[Launch] = []

    def record(kernel: Any, grid: Any, tile: Any, *arguments: Any, **constants: Any) -> None:
        found.append(Launch(kernel, tile, arguments, constants))

    dtype, torch.backends.cuda.matmul.fp32_precision = FORMATS[name]
    with (
        mock.patch.object(shared, "launch", record),
        mock.patch.object(shared, "capability", lambda device: chip),
    ):
        CALLS[op](dim, dtype)
    return found


def signature(launch: Launch) -> tuple[dict[str, str], dict[Any, Any], dict[Any, Any]]:
    """Return a launch's types, constants and alignments as the compiler takes them."""
    names = launch.kernel.arg_names
    general = [parameter.do_not_specialize for parameter in launch.kernel.params]
    types = {name: "constexpr" for name in launch.constants}
    constants = {(names.index(name),): value for name, value in launch.constants.items()}
    aligned = {}
    for index, value in enumerate(launch.arguments):
        number = isinstance(value, int) and not general[index]
        if value is None or (number and value == 1):
            types[names[index]] = "constexpr"
            constants[(index,)] = value
        elif isinstance(value, Tensor):
            types[names[index]] = "*" + TYPES[value.dtype]
            if value.data_ptr() % 16 == 0:
                aligned[(index,)] = ALIGNED
        elif isinstance(value, float):
            types[names[index]] = "fp32"
        else:
            types[names[index]] = "i32" if abs(value) < 2**31 else "i64"
            if number and value % 16 == 0:
                aligned[(index,)] = ALIGNED
    return {name: types[name] for name in names}, constants, aligned


def tools() -> Path:
    """Return the folder of the CUDA tools that Triton's wheel brings."""
    return Path(import_module("triton").__file__ or "").parent / "backends" / "nvidia" / "bin"


@lru_cache(64)  # an op may make the same kernel of many dims and dtypes
def used(cubin: bytes) -> tuple[int, int, str]:
    """Return a compiled kernel's registers, spills and tensor-core instructions, as in `Row`."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tools() / "cuobjdump"), "--dump-resource-usage", "-sass", file.name]
        code = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers = re.search(r"\bREG:(\d+)", code)
    assert registers, code[:1000]
    counts = {name: len(re.findall(rf"\b{name}\b", code)) for name in ("HGMMA", "HMMA")}
    products = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    return int(registers[1]), len(re.findall(r"\b(?:LDL|STL)\b", code)), products


def compiled(op: str, chip: int, dim: int, name: str, launch: Launch) -> Row:
    """Compile a launch for a chip and return what it takes."""
    triton = import_module("triton")
    target = import_module("triton.backends.compiler").GPUTarget("cuda", chip, 32)
    types, constants, aligned = signature(launch)
    source = import_module("triton.compiler").ASTSource(launch.kernel, types, constants, aligned)
    kernel = triton.compile(source, target=target, options=launch.tile.options)
    registers, spills, products = used(kernel.asm["cubin"])
    tile, shared = tuple(launch.tile[:4]), kernel.metadata.shared
    return Row(
        op, launch.kernel.__name__, chip, dim, name, tile, registers, spills, shared, products
    )


def rows(
    op: str, chip: int, dim: int, name: str, kernels: Container[str] | None = None
) -> list[Row]:
    """Compile each kernel that an op launches once, or those named, and return what they take."""
    launches = {}
    for launch in recorded(op, chip, dim, name):
        if kernels is None or launch.kernel.__name__ in kernels:
            key = (launch.kernel.__name__, launch.tile, repr(signature(launch)))
            launches.setdefault(key, launch)
    return [compiled(op, chip, dim, name, launch) for launch in launches.values()]


HEAD = """# Triton kernels, compiled ahead of time

Written by `python -m bench.aot{options} --markdown docs/triton.md`
with Triton {version} and the ptxas that it brings; nothing here was run on a GPU. A cell says the
tile (rows × columns, w warps, s stages), then a thread's registers, the machine code's loads and
stores of spilled registers where there are any, a block's shared memory, and the instructions of
the tensor cores: the most that any of a kernel's forms takes. Dtypes with the same tiles and
instructions share a row, and so do dims with the same cells. A block has at most 163 KiB of shared
memory on sm_80, 99 KiB on sm_89 and 227 KiB on sm_90; `python -m bench.aot` fails where one needs
more, or spills. tf32 is float32 where torch takes its own products in TF32
(`torch.backends.cuda.matmul.fp32_precision`); else they are IEEE, which no tensor core computes.
"""


def instructions(row: Row) -> tuple[str, ...]:
    """Return the names of a kernel's tensor-core instructions."""
    return tuple(re.findall(r"[A-Z]+", row.tensor_cores))


def cell(forms: list[Row]) -> str:
    """Return what the forms of a kernel take of one chip, at most, for each of its tiles."""
    parts = []
    for tile in dict.fromkeys(row.tile for row in forms):
        own = [row for row in forms if row.tile == tile]
        registers, spills = (
            max(getattr(row, key) for row in own) for key in ("registers", "spills")
        )
        taken = [f"{registers} registers", f"{max(row.shared for row in own) / 1024:.0f} KiB"]
        taken += [f"**{spills} spills**"] if spills else []
        taken += sorted({name for row in own for name in instructions(row)})
        m, n, warps, stages = tile
        parts.append(f"{m}×{n} w{warps} s{stages}: {', '.join(taken)}")
    return "; ".join(parts)


def lines(kernel: str, forms: list[Row], chips: list[int]) -> list[str]:
    """Return a kernel's rows of the table."""
    dims: dict[tuple[str, ...], list[int]] = {}  # of each row's dtypes and cells
    for dim in sorted({row.dim for row in forms}):
        alike: dict[Any, list[Row]] = {}
        for name in FORMATS:
            own = [row for row in forms if (row.dim, row.dtype) == (dim, name)]
            kind = frozenset((row.chip, row.tile, instructions(row)) for row in own)
            alike.setdefault(kind, []).extend(own)
        for own in filter(None, alike.values()):
            names = ", ".join(dict.fromkeys(row.dtype for row in own))
            cells = [cell([row for row in own if row.chip == chip]) for chip in chips]
            dims.setdefault((names, *cells), []).append(dim)
    return [
        f"| {kernel} | {', '.join(map(str, some))} | {' | '.join(rest)} |"
        for rest, some in dims.items()
    ]


def markdown(found: list[Row]) -> str:
    """Return the table as a document."""
    asked = {"chip": CHIPS, "dim": DIMS, "dtype": FORMATS}
    given = {key: dict.fromkeys(getattr(row, key) for row in found) for key in asked}
    options = "".join(
        f" --{key}s {' '.join(map(str, values))}"
        for key, values in given.items()
        if values.keys() != set(asked[key])
    )
    document = [HEAD.format(version=import_module("triton").__version__, options=options)]
    chips = sorted({row.chip for row in found})
    for op in dict.fromkeys(row.op for row in found):
        columns = ["kernel", "dim", "dtype", *(f"sm_{chip}" for chip in chips)]
        document += [f"## {op}\n", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        own = [row for row in found if row.op == op]
        for kernel in sorted({row.kernel for row in own}):
            document += lines(kernel, [row for row in own if row.kernel == kernel], chips)
        document.append("")
    return "\n".join(document)


def arguments() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = make_parser("bench.aot", __doc__)
    add = parser.add_argument
    add("ops", nargs="*", metavar="OP", help=f"some of: {', '.join(CALLS)} (default: all)")
    add("--chips", type=int, nargs="+", default=CHIPS, choices=CHIPS)
    add("--dims", type=int, nargs="+", default=DIMS)
    add("--dtypes", nargs="+", default=list(FORMATS), choices=list(FORMATS))
    add("--kernels", nargs="+", metavar="NAME", help="only these")
    add("--jobs", type=int, default=cores(), help="processes (default: one a core)")
    add("--markdown", type=Path, help="write the table there")
    return parser


def main() -> int:
    """Compile what was asked for, print each row as JSON, and return 1 where one is unfit."""
    given = arguments().parse_args()
    limits = import_module("pipa_fast.kernels._launch").SHARED_MEMORY
    found, unfit = [], 0
    problems = list(product(given.ops or CALLS, given.chips, given.dims, given.dtypes))
    # Not forked: torch has threads by now.
    with ProcessPoolExecutor(given.jobs, get_context("spawn")) as pool:
        for some in pool.map(rows, *zip(*problems, strict=True), repeat(given.kernels)):
            for row in some:
                fault = row.fault(limits)
                unfit += bool(fault)
                print(json.dumps({**row._asdict(), "fault": fault}), flush=True)
                found.append(row)
    if given.markdown:
        given.markdown.write_text(markdown(found))
    return int(unfit > 0)


if __name__ == "__main__":
    sys.exit(main())
