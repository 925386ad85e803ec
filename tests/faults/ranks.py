# SPDX-License-Identifier: Apache-2.0
"""Run by test_ranks.py under torchrun: a training run whose last rank misbehaves at step 3.

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
    step = Trainer._train_step

    def spoilt(self, batch):
        if self.world.rank == self.world.size - 1 and self.iteration == 2:
            misbehave(how, Path(folder))
        return step(self, batch)

    Trainer._train_step = spoilt
    sys.argv = ["train", *TINY, "--run.dir", folder, *rest]
    return train.main()


if __name__ == "__main__":
    sys.exit(main())
