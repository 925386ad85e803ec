# SPDX-License-Identifier: Apache-2.0
"""One forward and backward of an op on a GPU between the profiler's marks, for Nsight Compute.

ncu --profile-from-start off python -m bench.profile_step pixel_contrast 16384 256
"""

import argparse

import torch

from bench.contenders import backends, find
from bench.harness import step
from bench.problem import DTYPES, OPS, Settings, make


def main() -> None:
    """Run it twice before, so that nothing is compiled or loaded inside the marks."""
    parser = argparse.ArgumentParser(prog="python -m bench.profile_step", description=__doc__)
    parser.add_argument("op", choices=OPS)
    parser.add_argument("n", type=int)
    parser.add_argument("d", type=int)
    parser.add_argument("--dtype", choices=list(DTYPES), default="bfloat16")
    parser.add_argument("--backend", help="default: the best that runs here")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("it needs a GPU")
    device = torch.device("cuda")
    name = args.backend or backends(args.op, device)[0]
    problem = make(Settings(op=args.op, n=args.n, d=args.d, device="cuda", dtype=args.dtype))
    function = find(args.op, device, name).make()
    for _ in range(2):
        step(problem, function)
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    step(problem, function)
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()
    print(f"{name}: {args.op}, {args.n} x {args.d}, {args.dtype}")


if __name__ == "__main__":
    main()
