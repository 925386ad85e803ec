# SPDX-License-Identifier: Apache-2.0
"""Compiles the CUDA C++ kernels without a GPU, and lists what each takes of its chip.

python -m bench.cuda_table                                   # every unit, sm_80 and sm_90a
python -m bench.cuda_table pixel_contrast_512 --chips 80     # units of csrc/cuda by name
python -m bench.cuda_table --markdown docs/cuda.md           # the committed table

Exit status 1 tells of a kernel that spills registers, keeps variables in local memory, does not
fit a multiprocessor, or multiplies outside of the tensor cores. It needs nvcc, and cuobjdump from
the toolkit or Triton's package, to look for the tensor cores' instructions.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench.program import make_parser

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "csrc" / "cuda"
CHIPS = (80, 90)
CODE = {80: "80", 90: "90a"}
FLAGS = ("-std=c++17", "-O3", "-Wno-deprecated-gpu-targets", f"-I{ROOT / 'csrc'}")
# Registers, threads and bytes of shared memory of a multiprocessor (CUDA programming guide,
# technical specifications per compute capability).
REGISTERS, THREADS = 65536, 2048
COPIER = 128  # threads of a kernel for Hopper that copy, and leave registers to the others
MULTIPLIER_REGISTERS, COPIER_REGISTERS = 240, {1: 40, 2: 24}  # as csrc/cuda/hopper_tiles.h says
SHARED = {80: 164 * 1024, 89: 100 * 1024, 90: 228 * 1024}
RESERVED = 1024  # bytes of shared memory that the system takes of each block
NUMBERS = ("bfloat16", "float16", "tf32", "tf32x3")
# Of a kernel's name: what it is called, its shape and its number.
NAME = re.compile(
    r"pipa::cuda::(\w+)<pipa::cuda::\w*Shape<([\d, ]+)>, \(pipa::cuda::Number\)(\d)"
    r"(?:, \(pipa::cuda::Wanted\)(\d))?"
)


def nvcc() -> str:
    """Return the compiler's path.

    Raises:
        ValueError: there is none.
    """
    found = shutil.which("nvcc")
    if found is None:
        raise ValueError("nvcc must be on the PATH; it comes with the CUDA toolkit")
    return found


def units(chip: int | None = None) -> list[str]:
    """Return the names of the translation units that hold kernels, of one chip or of all."""
    found = sorted(path.stem for path in SOURCES.glob("*_[0-9]*.cu"))
    return [unit for unit in found if chip in (None, 90) or "_hopper_" not in unit]


def compile_unit(unit: str, chip: int, folder: Path) -> list[dict[str, Any]]:
    """Return a row for each kernel of a unit.

    Raises:
        RuntimeError: it does not compile.
    """
    cubin = folder / f"{unit}.{chip}.cubin"
    words = [nvcc(), *FLAGS, f"-arch=sm_{CODE[chip]}", "-cubin", "-Xptxas", "-v"]
    words += [str(SOURCES / f"{unit}.cu"), "-o", str(cubin)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{unit} does not compile for sm_{chip}:\n{done.stderr[-2000:]}")
    if "wgmma" in done.stderr:  # ptxas waits after each, where it cannot tell that it need not
        raise RuntimeError(f"{unit}'s products are not asynchronous:\n{done.stderr[-2000:]}")
    found = re.findall(
        r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers",
        done.stderr,
        re.DOTALL,
    )
    names = demangled([symbol for symbol, *_ in found])
    products = tensor_cores(cubin)
    rows = []
    for (symbol, *numbers), name in zip(found, names, strict=True):
        stack, stores, loads, registers = map(int, numbers)
        row = describe(name, chip) | {
            "unit": unit,
            "registers": registers,
            "stack": stack,
            "spills": stores + loads,
            "tensor_cores": None if products is None else products.get(symbol, ""),
        }
        row["blocks"] = blocks(row)
        row["fault"] = fault(row)
        rows.append(row)
    return rows


def demangled(symbols: Sequence[str]) -> list[str]:
    """Return C++ names of symbols, as written in the source."""
    program = shutil.which("c++filt") or "c++filt"
    done = subprocess.run([program], input="\n".join(symbols), capture_output=True, text=True)
    return done.stdout.split("\n")[: len(symbols)]


def describe(name: str, chip: int) -> dict[str, Any]:
    """Return what a kernel's name tells: which it is, for which rows, and its shape."""
    match = NAME.search(name)
    assert match, name
    kernel, shape, number, total = match.groups()
    if kernel.startswith("hopper_"):
        return describe_hopper(kernel, list(map(int, shape.split(", "))), NUMBERS[int(number)])
    row_bytes, rows, columns, warps, part, _ = map(int, shape.split(", "))
    own, other = rows * row_bytes, columns * row_bytes
    beside = {
        "sum_apart_kernel": 2 * other + warps * columns * 4,
        "sum_mixed_kernel": other,
        "sum_others_kernel": 2 * other,
        "gradient_kernel": 2 * other + 2 * columns * 4,
        "attend_kernel": 2 * other,
    }
    kind = NUMBERS[int(number)]
    return {
        "kernel": kernel if total is None else f"{kernel}, {('Z', 'positives')[int(total)]}",
        "chip": chip,
        "number": kind,
        "columns": row_bytes // (2 if kind.endswith("16") else 4),
        "tile": f"{rows} x {columns}",
        "threads": 32 * warps,
        "part": part,
        "cluster": 1,
        "shared": own + beside[kernel],
    }


def describe_hopper(kernel: str, shape: Sequence[int], kind: str) -> dict[str, Any]:
    """Return the same of a kernel for Hopper, as csrc/cuda/hopper_tiles.h lays its memory out."""
    row_bytes, groups, columns, stages, part, _, cluster = shape
    rows, warps = 64 * groups, 4 * groups
    numbers = {
        "hopper_sum_apart_kernel": 2 * warps * columns,
        "hopper_sum_others_kernel": 4,
        "hopper_gradient_kernel": stages * columns,
        "hopper_attend_kernel": 4,
    }
    tiles = (rows + stages * columns) * row_bytes
    return {
        "kernel": kernel,
        "chip": 90,
        "number": kind,
        "columns": row_bytes // 2,
        "tile": f"{rows} x {columns}",
        "threads": 128 * groups + COPIER,
        "part": part,
        "cluster": cluster,
        "pool": 128 * (groups * MULTIPLIER_REGISTERS + COPIER_REGISTERS[groups]),
        "shared": tiles + 4 * numbers[kernel] + 8 * (1 + 2 * stages) + 1024,
    }


def cuobjdump() -> str | None:
    """Return the disassembler's path: the toolkit's, or the one that Triton brings."""
    found = shutil.which("cuobjdump")
    spec = find_spec("triton")
    if found is None and spec is not None and spec.origin is not None:
        path = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        found = str(path) if path.is_file() else None
    return found


def tensor_cores(cubin: Path) -> dict[str, str] | None:
    """Return which tensor-core instructions each kernel has; None without a disassembler."""
    tool = cuobjdump()
    if tool is None:
        return None
    done = subprocess.run([tool, "-sass", str(cubin)], capture_output=True, text=True)
    found = {}
    for text in done.stdout.split("Function : ")[1:]:
        kinds = sorted(set(re.findall(r"\b(HMMA|HGMMA|UTMALDG|MULTICAST)\b", text)))
        found[text.split("\n", 1)[0].strip()] = " ".join(kinds)
    return found


def blocks(row: dict[str, Any]) -> int:
    """Return how many blocks a multiprocessor holds."""
    registers = -(-row["registers"] // 8) * 8 * row["threads"]
    return min(
        REGISTERS // registers,
        THREADS // row["threads"],
        SHARED[row["chip"]] // (row["shared"] + RESERVED),
    )


def fault(row: dict[str, Any]) -> str:
    """Return what is wrong with a kernel, "" where nothing is."""
    if row["spills"] or row["stack"]:
        return f"spills {row['spills']} bytes, keeps {row['stack']} in local memory"
    if row["blocks"] < 1:
        return "does not fit a multiprocessor"
    if "pool" in row and row["pool"] > row["registers"] * row["threads"]:
        return f"starts with {row['registers']} registers a thread: some would wait for more"
    if row["tensor_cores"] == "":
        return "multiplies outside of the tensor cores"
    if row["kernel"].startswith("hopper_") and row["tensor_cores"] is not None:
        wanted = "HGMMA MULTICAST UTMALDG" if row["cluster"] > 1 else "HGMMA UTMALDG"
        if row["tensor_cores"] != wanted:
            return f"has {row['tensor_cores']}, not {wanted}"
    return ""


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Return the committed page."""
    lines = [
        "# What the CUDA C++ kernels take of a chip",
        "",
        "Compiled, not yet run on a GPU; nothing spills, and nothing is kept in local memory.",
        "`columns`: of the widest rows that a kernel takes. `cluster`: how many blocks share their",
        "tiles, by copies to all of them. `blocks`: how many a multiprocessor holds. `hopper_`",
        "kernels, of wgmma and bulk copies of tensors, take 16-bit numbers on sm_90; the",
        "environment's `PIPA_FAST_HOPPER=0` leaves them to others. Their registers are those at",
        "the start: threads that multiply go on with 240, those that copy with 24 or 40.",
        "Written by `python -m bench.cuda_table --markdown docs/cuda.md`.",
        "",
        "| kernel | chip | number | columns | tile | cluster | threads | registers | shared KiB "
        "| blocks |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['kernel']} | sm_{CODE[r['chip']]} | {r['number']} | {r['columns']} | {r['tile']} "
        f"| {r['cluster']} | {r['threads']} | {r['registers']} | {r['shared'] / 1024:.0f} "
        f"| {r['blocks']} |"
        for r in sorted(rows, key=lambda r: (r["kernel"], r["chip"], r["number"], r["columns"]))
    ]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = make_parser("bench.cuda_table", __doc__)
    parser.add_argument("units", nargs="*", help=f"of {', '.join(units())} (default: all)")
    parser.add_argument("--chips", type=int, nargs="+", choices=CHIPS, default=list(CHIPS))
    parser.add_argument("--jobs", type=int, default=2, help="compilers at a time")
    parser.add_argument("--markdown", type=Path, help="write the table there")
    args = parser.parse_args(argv)
    if unknown := sorted(set(args.units) - set(units())):
        parser.error(f"no unit {', '.join(unknown)}; there are {', '.join(units())}")
    tasks = [
        (unit, chip)
        for chip in args.chips
        for unit in units(chip)
        if unit in (args.units or units())
    ]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.jobs) as pool:
        made = pool.map(lambda task: compile_unit(task[0], task[1], Path(folder)), tasks)
        rows = [row for some in made for row in some]
    for row in rows:
        print(json.dumps(row))
    if args.markdown:
        args.markdown.write_text(markdown(rows))
    faults = [row for row in rows if row["fault"]]
    for row in faults:
        print(f"{row['unit']} {row['kernel']} {row['number']}: {row['fault']}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
