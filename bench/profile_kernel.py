# SPDX-License-Identifier: Apache-2.0
"""One forward and backward of an op between a profiler's marks; `bench/profile.sh kernel` calls it.

ncu --profile-from-start off python -m bench.profile_kernel pixel_contrast 16384 256
python -m bench.profile_kernel patch_consistency --trace runs/profile/kernel.json.gz
"""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import torch

from bench.call import step
from bench.contenders import backends, find
from bench.problem import DTYPES, OPS, Settings, make
from bench.profiled import profiled
from bench.program import make_parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run it twice before, so that nothing is compiled or loaded inside the marks."""
    gpu = torch.cuda.is_available()
    parser = make_parser("bench.profile_kernel", __doc__)
    parser.add_argument("op", metavar="OP", choices=OPS, help=f"one of: {', '.join(OPS)}")
    parser.add_argument(
        "n", type=int, nargs="?", help="default: the op's first size in bench/OP.py"
    )
    parser.add_argument("d", type=int, nargs="?", help="default: likewise")
    parser.add_argument("--dtype", choices=list(DTYPES), default="bfloat16" if gpu else "float32")
    parser.add_argument("--variant", help="form of the op (default: its first)")
    parser.add_argument("--backend", help="default: the best that runs here")
    parser.add_argument("--trace", type=Path, help="by torch.profiler, into this .json or .json.gz")
    args = parser.parse_args(argv)
    if not gpu and args.trace is None:
        parser.error("without --trace it is for Nsight and needs a GPU")
    device, module = torch.device("cuda" if gpu else "cpu"), import_module(f"bench.{args.op}")
    for name, known in (("backend", backends(args.op, device)), ("variant", module.VARIANTS)):
        asked = getattr(args, name)
        if asked is not None and asked not in known:
            parser.error(f"--{name} of {args.op} here: {', '.join(known)}; got {asked!r}")
    settings = Settings(
        op=args.op,
        n=args.n or module.SIZES[0],
        d=args.d or module.DIMS[0],
        device=device.type,
        dtype=args.dtype,
        variant=args.variant or module.VARIANTS[0],
    )
    backend = args.backend or backends(args.op, device)[0]
    problem, function = make(settings), find(args.op, device, backend).make()
    for _ in range(2):
        step(problem, function)
    with profiled(device, args.trace):
        step(problem, function)
    print(f"{backend}: {args.op}, {settings.n} x {settings.d}, {args.dtype}")


if __name__ == "__main__":
    main()
