# SPDX-License-Identifier: Apache-2.0
"""Training steps of a recipe between a profiler's marks; `bench/profile.sh step` calls it.

nsys profile --capture-range cudaProfilerApi python -m bench.profile_step --recipe streets_pipa
python -m bench.profile_step --trace runs/profile/step.json.gz -- --data.num_workers 1

What follows `--` changes settings of the recipe. Steps are those of the middle of the run, when
every term counts; loading their batches is in the profile, and so is whatever the host waits for.
"""

import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from bench.profiled import profiled
from bench.program import make_parser
from bench.step import Contender
from pipa_fast.training.config import load, read_recipe


def main(argv: Sequence[str] | None = None) -> None:
    """Take steps that warm up, then some between the marks."""
    parser = make_parser("bench.profile_step", __doc__)
    add = parser.add_argument
    add("--recipe", default="streets_pipa", help="recipe name or YAML file")
    add("--steps", type=int, default=3, help="between the marks")
    add("--warmup", type=int, default=2, help="steps before them")
    add("--trace", type=Path, help="by torch.profiler, into this .json or .json.gz")
    add("settings", nargs="*", help="settings of the recipe, after --")
    args = parser.parse_args(argv)
    if args.steps < 1 or args.warmup < 0:
        parser.error(f"--steps must be 1 or more, --warmup 0; got {args.steps}, {args.warmup}")
    with tempfile.TemporaryDirectory() as folder:
        try:
            config = load(read_recipe(args.recipe), [*args.settings, "--run.dir", folder])
        except ValueError as error:
            parser.error(str(error))
        trainer = Contender("ours", config, nullcontext, reads=False).trainer
        device, batches = trainer.world.device, trainer._batches()
        if device.type != "cuda" and args.trace is None:
            parser.error("without --trace it is for Nsight and needs a GPU")
        for _ in range(args.warmup):
            trainer._train_step(next(batches))
        with profiled(device, args.trace):
            for _ in range(args.steps):
                trainer._train_step(next(batches))
    print(f"{args.recipe}: {args.steps} steps on {device}")


if __name__ == "__main__":
    main()
