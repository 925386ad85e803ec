# SPDX-License-Identifier: Apache-2.0
"""Kills one of two ranks under torchrun, again and again, and counts the runs that recover.

python -m tests.faults.restarts --count 20 --seed 1

Rank and step are drawn. A run has recovered where torchrun, without help, ended it with 0, and the
exported weights have the bytes of a run that nobody disturbed.
"""

import random
import sys
import tempfile
from pathlib import Path

from bench.program import make_parser
from pipa_fast.training import checkpoint
from tests.faults.test_ranks import run


def weights(folder: Path) -> bytes:
    """Return the bytes that a run exported."""
    return (folder / "streets_source" / checkpoint.EXPORTED).read_bytes()


def recovers(folder: Path, rank: int, step: int, expected: bytes) -> bool:
    """Kill the rank at the step, and return whether the run ended as if nothing had been."""
    done = run(f"die@{rank},{step}", folder, restarts=1)
    assert (folder / "died").exists(), "nobody was killed"
    fine = done.returncode == 0 and weights(folder) == expected
    if not fine:
        print(f"rank {rank} at step {step}: {done.stderr[-2000:]}", file=sys.stderr)
    return fine


def main() -> int:
    """Run the command line."""
    parser = make_parser("tests.faults.restarts", __doc__)
    parser.add_argument("--count", type=int, default=20, help="runs of which a rank is killed")
    parser.add_argument("--seed", type=int, default=1, help="of ranks and steps")
    args = parser.parse_args()
    draw, recovered = random.Random(args.seed), 0  # noqa: S311
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / str(number) for number in range(args.count + 1)]
        for folder in folders:
            folder.mkdir()
        peace, *killed = folders
        assert run("nothing", peace).returncode == 0, "the run in peace failed"
        expected = weights(peace)
        for folder in killed:
            recovered += recovers(folder, draw.randrange(2), draw.randint(1, 6), expected)
    print(f"recovered {recovered} of {args.count} runs that lost a rank")
    return int(recovered < args.count)


if __name__ == "__main__":
    sys.exit(main())
