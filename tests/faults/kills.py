# SPDX-License-Identifier: Apache-2.0
"""Kills training runs, lets them go on, and compares their ends with that of one left in peace.

python -m tests.faults.kills --count 200 --seed 1

Every second run is killed from outside, at a moment drawn from its length. Every other one kills
itself at a file operation that is drawn: before the k-th write of a checkpoint, fsync, rename or
removal, which is where a half-written file would be left. Then it goes on by --run.resume auto. A
run has survived where its exported weights have the same bytes, and its last checkpoint the same
tensors, as those of the run in peace. Runs are forks of one process that has imported everything.
"""

import itertools
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from bench.program import make_parser
from pipa_fast.data import loader
from pipa_fast.training import checkpoint, distributed, trainer
from pipa_fast.training.config import load, merge, read_recipe
from tests.few import Few

TINY = {
    "iterations": 6,
    "data": {"crop": [32, 32], "patch_crop": [32, 32], "batch_size": 1, "num_workers": 0},
    "run": {"log_every": 1, "eval_every": 100, "checkpoint_every": 1, "report": False},
}
CONFIG = load(merge(read_recipe("streets_source"), TINY))  # here, as it takes as long as a run
OPERATIONS = [(torch, "save"), (os, "fsync"), (os, "replace"), (os, "unlink")]


def train(folder: Path) -> None:
    """Run to the end, from wherever the folder's run is; of this process, the only one."""
    CONFIG.run.dir, CONFIG.run.resume = str(folder), "auto"
    with mock.patch.object(loader, "build_dataset", Few):
        trainer.Trainer(CONFIG, distributed.start("cpu")).run()


def on_operations(act: Callable[[int], None]) -> None:
    """Let this process call act(k) before its k-th file operation."""
    numbers = itertools.count(1)

    def wrapped(call: Callable[..., Any]) -> Callable[..., Any]:
        def acting(*arguments: Any, **options: Any) -> Any:
            act(next(numbers))
            return call(*arguments, **options)

        return acting

    for module, name in OPERATIONS:
        setattr(module, name, wrapped(getattr(module, name)))


def die_at(number: int) -> None:
    """Let this process kill itself before its k-th file operation."""

    def act(operation: int) -> None:
        if operation == number:
            os.kill(os.getpid(), signal.SIGKILL)

    on_operations(act)


def start(folder: Path, prepare: Callable[[], None] = lambda: None) -> int:
    """Train in a fork of this process, and return its number."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        prepare()
        train(folder)
        status = 0
    except (Exception, SystemExit):
        traceback.print_exc()
    finally:  # never back into the parent's code
        os._exit(status)


def ended(child: int) -> int:
    """Wait for a fork and return its exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def result(folder: Path) -> tuple[bytes, dict[str, Any]]:
    """Return a finished run's exported bytes and its last checkpoint."""
    run = folder / "streets_source"
    state = checkpoint.load_newest(run)
    assert state is not None
    return (run / checkpoint.EXPORTED).read_bytes(), state


def tensors(value: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of a state by name."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict | list | tuple):
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            yield from tensors(entry, f"{name}.{key}")


def same(one: tuple[bytes, dict[str, Any]], other: tuple[bytes, dict[str, Any]]) -> bool:
    """Return whether two runs ended alike, to the bit."""
    a, b = dict(tensors(one[1])), dict(tensors(other[1]))
    return one[0] == other[0] and a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def kill(folder: Path, draw: random.Random, inside: bool, seconds: float, operations: int) -> bool:
    """Start a run and kill it; return whether it was, and did not end before."""
    if inside:
        number = draw.randrange(1, operations + 1)
        return ended(start(folder, lambda: die_at(number))) == -signal.SIGKILL
    child = start(folder)
    time.sleep(draw.uniform(0, seconds))
    os.kill(child, signal.SIGKILL)
    return ended(child) == -signal.SIGKILL


def count_operations(folder: Path) -> int:
    """Return how many file operations a run in peace makes; it is left in the folder."""
    counted = folder / "operations"

    def count() -> None:
        on_operations(lambda operation: counted.write_text(str(operation)))

    assert ended(start(folder, count)) == 0, "the run in peace failed"
    return int(counted.read_text())


def run(count: int, seed: int) -> tuple[int, int]:
    """Return how many runs were killed, and how many of them ended as the one in peace did."""
    torch.set_num_threads(1)
    draw, killed, survived = random.Random(seed), 0, 0  # noqa: S311
    with tempfile.TemporaryDirectory() as name:
        peace = Path(name) / "peace"
        peace.mkdir()
        begun = time.monotonic()
        operations = count_operations(peace)
        seconds, expected = time.monotonic() - begun, result(peace)
        attempt = 0
        while killed < count:
            folder = Path(name) / f"run{attempt}"
            attempt += 1
            if not kill(folder, draw, attempt % 2 == 0, seconds, operations):
                continue  # it was quicker
            killed += 1
            fine = ended(start(folder)) == 0 and same(result(folder), expected)
            survived += fine
            if not fine:
                print(f"attempt {attempt - 1} of seed {seed} did not survive", file=sys.stderr)
    return killed, survived


def main() -> int:
    """Run the command line."""
    parser = make_parser("tests.faults.kills", __doc__)
    parser.add_argument("--count", type=int, default=200, help="runs that are killed")
    parser.add_argument("--seed", type=int, default=1, help="of the moments")
    args = parser.parse_args()
    killed, survived = run(args.count, args.seed)
    print(f"survived {survived} of {killed} kills")
    return int(survived < killed)


if __name__ == "__main__":
    sys.exit(main())
