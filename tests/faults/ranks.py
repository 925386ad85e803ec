# SPDX-License-Identifier: Apache-2.0
"""Run by test_ranks.py under torchrun: a training run of which one rank misbehaves.

It is the last rank, at step 3, unless HOW names another: die@0,5 is rank 0 at step 5.

python -m torch.distributed.run ... -m tests.faults.ranks HOW FOLDER [options of pipa_fast.train]
"""

import os
import signal
import sys
import time
from pathlib import Path

from pipa_fast import train
from pipa_fast.training.trainer import Trainer

TINY = ["--config", "streets_source", "--iterations", "6", "--data.crop", "[32, 32]"]
TINY += ["--data.patch_crop", "[32, 32]", "--run.report", "false", "--run.log_every", "1"]
TINY += ["--run.checkpoint_every", "2", "--run.eval_every", "100", "--device", "cpu"]
TINY += ["--data.rare_class", "false"]


def misbehave(how: str, folder: Path) -> None:
    """Do what this rank is to do instead of its third step."""
    if how == "hang":
        time.sleep(60)
    elif how == "die" and not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "ask":
        os.kill(os.getpid(), signal.SIGUSR1)


def main() -> int:
    """Train with a last rank, or an only one, that misbehaves."""
    how, folder, *rest = sys.argv[1:]
    how, _, where = how.partition("@")
    rank, number = map(int, where.split(",")) if where else (-1, 3)
    step = Trainer._train_step

    def spoilt(self, batch):
        if self.world.rank == rank % self.world.size and self.iteration == number - 1:
            misbehave(how, Path(folder))
        return step(self, batch)

    Trainer._train_step = spoilt
    sys.argv = ["train", *TINY, "--run.dir", folder, *rest]
    return train.main()


if __name__ == "__main__":
    sys.exit(main())
