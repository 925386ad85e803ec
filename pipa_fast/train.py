# SPDX-License-Identifier: Apache-2.0
"""Train a recipe, on one process or many.

python -m pipa_fast.train --config streets_pipa --seed 1
torchrun --standalone --nproc-per-node 2 -m pipa_fast.train --config streets_pipa
"""

import logging
import signal
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import numpy as np
from PIL import Image
from torch.distributed.elastic.multiprocessing.errors import record
from torch.utils.tensorboard.writer import SummaryWriter

from pipa_fast.evaluation.report import write_report
from pipa_fast.evaluation.runs import read_run
from pipa_fast.program import CTRL_C
from pipa_fast.training import checkpoint, distributed
from pipa_fast.training.config import Config, parse, parser
from pipa_fast.training.heartbeat import LOST
from pipa_fast.training.trainer import Interrupted, RankLost, Trainer

__all__ = ["main", "parser", "run"]
# How the process ends. Asked to stop, with its state saved, it has done as told: 0, but for CTRL_C.
STATUSES: dict[type[Exception], int] = {
    ValueError: 2,
    FloatingPointError: 3,
    RankLost: LOST,
    OSError: 5,
}


def report(trainer: Trainer) -> Path:
    """Write the finished run's report and return its path."""
    config = trainer.config
    baseline = config.run.baseline
    path = write_report(
        trainer.run_dir,
        network=trainer.network,
        dataset=trainer.validation,
        teacher=None if trainer.teacher is None else trainer.teacher.network,
        baseline_dir=baseline,
        baseline=None if baseline is None else checkpoint.load_run(baseline)[0],
        initial=checkpoint.before_training(config) if baseline is None else None,
        device=trainer.world.device,
        **config.evaluation.view,
    )
    with (
        SummaryWriter(str(trainer.run_dir)) as writer,
        Image.open(path.with_name("panels.png")) as p,
    ):
        writer.add_image("panels", np.asarray(p), trainer.iteration, dataformats="HWC")
    return path


def run(config: Config, world: distributed.World) -> int:
    """Train, and let the first rank write the report; return the process's exit code."""
    if config.run.baseline is not None:
        # A wrong folder, or a converted one without results, is told now, not after hours.
        checkpoint.load_run(config.run.baseline)
        read_run(config.run.baseline)
    trainer = Trainer(config, world)
    try:
        result = trainer.run()
    except Interrupted as stop:
        if world.is_main:
            print(
                f"{stop}, state saved in {config.run_dir}; the same command with "
                "--run.resume auto goes on",
                file=sys.stderr,
            )
        return CTRL_C if signal.SIGINT.name in stop.args else 0
    if world.is_main:
        where = report(trainer) if config.run.report else trainer.run_dir
        print(f"{config.recipe}: mIoU {result.miou:.2f} -> {where}")
    return 0


@record
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the process's exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    config = parse(argv)
    try:
        return run(config, distributed.start(config.device, timedelta(seconds=config.run.timeout)))
    except tuple(STATUSES) as error:
        print(f"error: {error}", file=sys.stderr)
        return next(status for kind, status in STATUSES.items() if isinstance(error, kind))
    finally:
        distributed.end()


if __name__ == "__main__":
    sys.exit(main())
