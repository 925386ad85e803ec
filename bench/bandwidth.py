# SPDX-License-Identifier: Apache-2.0
"""`python -m bench bandwidth`: how fast memory is read and written, for `python -m bench roofline`.

python -m bench bandwidth
python -m bench bandwidth --device cpu --threads 2 --json rows.json
python -m bench bandwidth --save                         # bench/results/DEVICE/bandwidth.json

copy    b = a           counted as 2 arrays
triad   c = a + 3 b     counted as 3 arrays

float32 arrays of 256 MiB, larger than any cache. A CPU that reads a line of memory before it writes
it moves more than is counted, as STREAM (McCalpin) counts too.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.harness import Effort, interleave, quantiles, timed
from bench.machine import machine
from bench.program import make_parser
from bench.rows import keep, results_folder

MEBIBYTES = 256


def kernels(device: torch.device, mebibytes: int) -> dict[str, tuple[int, Callable[[], Tensor]]]:
    """Return each kernel's counted bytes and its call, by name."""
    size = mebibytes * 2**20
    a, b, out = (torch.ones(size // 4, device=device) for _ in range(3))
    return {
        "copy": (2 * size, lambda: out.copy_(a)),
        "triad": (3 * size, lambda: torch.add(a, b, alpha=3.0, out=out)),
    }


def measure(device: torch.device, effort: Effort, mebibytes: int) -> list[dict[str, Any]]:
    """Return a row for each kernel, `gbytes` in 10^9 bytes a second at the median time."""
    runs = kernels(device, mebibytes)
    calls = {name: timed(run, device, name) for name, (_, run) in runs.items()}
    samples = interleave(calls, effort)
    rows = []
    for name, (size, _) in runs.items():
        times = quantiles(samples[name][name])
        row = {"op": "bandwidth", "variant": name, "dtype": "float32", "status": "ok"}
        rows.append(row | {"bytes": size, "gbytes": size / times["p50_ms"] * 1e-6} | times)
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = make_parser("bench bandwidth", __doc__)
    add = parser.add_argument
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--mebibytes", type=int, default=MEBIBYTES, help="of an array")
    add("--seconds", type=float, default=5, help="of timing")
    add("--threads", type=int, help="of the CPU (default: torch's)")
    add("--json", type=Path, help="write the rows there, one JSON object a line")
    add("--save", action="store_true", help="write them to bench/results/DEVICE/bandwidth.json")
    args = parser.parse_args(argv)
    if args.mebibytes < 1:
        parser.error(f"--mebibytes must be 1 or more; got {args.mebibytes}")
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    where = machine(device)
    effort = Effort(args.seconds, warmup=min(0.3, args.seconds))
    rows = [where | row for row in measure(device, effort, args.mebibytes)]
    for row in rows:
        spread = (row["p80_ms"] - row["p20_ms"]) / row["p50_ms"]
        print(f"{row['variant']:6} {row['gbytes']:8.1f} GB/s, spread {spread:.0%}")
    folder = results_folder(where, gpu=device.type == "cuda")
    keep(rows, args.json, folder / "bandwidth.json" if args.save else None)


if __name__ == "__main__":
    main()
