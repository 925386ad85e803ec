# SPDX-License-Identifier: Apache-2.0
"""Run by test_distributed.py under torchrun: losses and gradients of steps, a run that resumes."""

import itertools
import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from pipa_fast.training import checkpoint, distributed
from pipa_fast.training.config import load, merge, read_recipe
from pipa_fast.training.trainer import Trainer

# Fewer anchors, pairs and keys than there are places for: what is drawn must not depend on ranks.
SAMPLED = {
    "data": {"crop": [32, 64], "patch_crop": [32, 32], "batch_size": 4, "rare_class": False},
    "model": {"batch_norm": "frozen"},
    "adaptation": {
        "mixed": {"threshold": 0.05},
        "masked": {"weight": 1.0, "block": 8},
        "features": {"weight": 0.1, "classes": list(range(19)), "min_ratio": 0.2},
        "pixel": {"num_anchors": 100, "images": "both", "weight": 0.5, "confidence": 0.0},
        "patch": {
            "confidence_threshold": 0.0,
            "bank_confidence": 0.0,
            "num_pairs": 60,
            "bank": 200,
            "weight": 0.5,
            "start": 0,
            "ramp": 0,
        },
    },
}


HRDA = {"model": {"hrda": {"enabled": True, "detail": [16, 32]}}}


def count_reductions(student: torch.nn.Module) -> list[int]:
    """Return a list that grows by one each time that DDP has reduced all gradients."""
    reductions: list[int] = []

    def hook(group, bucket):
        if bucket.is_last():
            reductions.append(bucket.index())
        return default_hooks.allreduce_hook(group, bucket)

    if isinstance(student, DistributedDataParallel):
        student.register_comm_hook(None, hook)
    return reductions


def steps(world: distributed.World, what: str) -> dict[str, Any]:
    """Return the ranks' mean losses and the reduced gradients of the second step of two.

    The weights stay as they are, so that ranks of the two runs differ by one step's rounding; the
    bank holds the first step's keys too.
    """
    recipe = merge(read_recipe("streets_pipa"), SAMPLED)
    config = load(merge(recipe, HRDA) if what == "hrda" else recipe)
    config.data.batch_size //= world.size
    if what == "parts":
        config.data.micro_batch = 1
    if what == "sync":
        config.model.batch_norm = "sync"
    if what == "valid":
        for term in (config.adaptation.source, config.adaptation.mixed, config.adaptation.masked):
            term.average = "valid"
    trainer = Trainer(config, world)
    with torch.no_grad():  # away from the frozen network, where the feature distance is 0
        for parameter in trainer.network.parameters():
            parameter.mul_(1.01)
    reductions = count_reductions(trainer.step.student)
    trainer.network.train()
    batches = trainer._batches()
    trainer.step(next(batches), 0)
    trainer.optimizer.zero_grad()
    losses = trainer.step(next(batches), 1)
    values = torch.stack(list(losses.values()))
    if world.size > 1:
        torch.distributed.all_reduce(values)
        values /= world.size
    gradients = {n: p.grad for n, p in trainer.network.named_parameters()}
    return {
        "loss": dict(zip(losses, values, strict=True)),
        "grad": gradients,
        "reductions": len(reductions),
    }


def resumed(world: distributed.World, folder: Path) -> dict[str, Any]:
    """Return the weights after four steps in one go, and after two and two."""
    found = {}
    for name, stops in (("whole", (4,)), ("broken", (2, 4))):
        for stop in stops:
            config = load(merge(merge(read_recipe("streets_pipa"), SAMPLED), {"iterations": 4}))
            config.data.batch_size //= world.size
            config.run.dir = str(folder / name)
            trainer = Trainer(config, world)
            if state := checkpoint.load_newest(trainer.run_dir):
                trainer.restore(state)
            for batch in itertools.islice(trainer._batches(), stop - trainer.iteration):
                trainer._train_step(batch)
                trainer.iteration += 1
            trainer._save()
            torch.distributed.barrier()
        found[name] = trainer.network.state_dict()
    return found


def threads() -> list[str]:
    """Return the names of this process's threads; none where the system keeps no such list."""
    return [name.read_text().strip() for name in Path("/proc/self/task").glob("*/comm")]


def main(out: str, what: str) -> None:
    world = distributed.start("cpu")
    torch.set_num_threads(1)
    result = resumed(world, Path(out).parent) if what == "resumed" else steps(world, what)
    if world.is_main:
        torch.save(result, out)
    del result
    distributed.end()
    left = [name for name in threads() if "gloo" in name]
    assert not left, f"threads that can abort the process as it ends: {left}"


if __name__ == "__main__":
    main(*sys.argv[1:])
