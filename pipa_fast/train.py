# SPDX-License-Identifier: Apache-2.0
"""Train a recipe, on one process or many.

python -m pipa_fast.train --config streets_pipa --seed 1
torchrun --standalone --nproc-per-node 2 -m pipa_fast.train --config streets_pipa
"""

import logging
import sys

from torch.distributed.elastic.multiprocessing.errors import record

from pipa_fast.training import distributed
from pipa_fast.training.config import parse
from pipa_fast.training.trainer import Interrupted, Trainer


@record
def main() -> int:
    """Run the command line; return the process's exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    config = parse()
    world = distributed.start(config.device)
    try:
        trainer = Trainer(config, world)
        result = trainer.run()
        if world.is_main and config.run.report:
            trainer.report()
        if world.is_main:
            print(f"{config.recipe}: mIoU {result.miou:.2f} -> {trainer.run_dir}")
    except Interrupted as stop:
        if world.is_main:
            print(
                f"{stop}, state saved in {config.run_dir}; the same command with "
                "--run.resume auto goes on",
                file=sys.stderr,
            )
        return 130
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        distributed.end()
    return 0


if __name__ == "__main__":
    sys.exit(main())
