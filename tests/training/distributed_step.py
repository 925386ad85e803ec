# SPDX-License-Identifier: Apache-2.0
"""Run by test_distributed.py under torchrun: one step's losses and gradients."""

import sys
from pathlib import Path

import torch

from pipa_fast.training import distributed
from pipa_fast.training.config import load, merge, read_recipe
from pipa_fast.training.trainer import Trainer

# Dense contrast and every overlap pair: sampling is drawn per rank, and this compares sums.
DENSE = {
    "data": {"crop": [32, 64], "patch_crop": [32, 32], "batch_size": 4},
    "model": {"batch_norm": "frozen"},
    "adaptation": {
        "mixed": {"threshold": 0.05},
        "pixel": {"num_anchors": "all", "images": "both", "weight": 0.5, "confidence": 0.0},
        "patch": {
            "confidence_threshold": 0.0,
            "bank_confidence": 0.0,
            "num_pairs": 4096,
            "weight": 0.5,
            "start": 0,
            "ramp": 0,
        },
    },
}


def step(world: distributed.World, average: str) -> dict[str, dict[str, torch.Tensor]]:
    """Return the ranks' mean losses and the reduced gradients of the first step."""
    config = load(merge(read_recipe("streets_pipa"), DENSE))
    config.data.batch_size //= world.size
    config.adaptation.source.average = config.adaptation.mixed.average = average
    trainer = Trainer(config, world)
    trainer.network.train()
    losses = trainer.step(next(trainer._batches()), 0)
    values = torch.stack(list(losses.values()))
    if world.size > 1:
        torch.distributed.all_reduce(values)
        values /= world.size
    gradients = {n: p.grad for n, p in trainer.network.named_parameters()}
    return {"loss": dict(zip(losses, values, strict=True)), "grad": gradients}


def threads() -> list[str]:
    """Return the names of this process's threads; none where the system keeps no such list."""
    return [name.read_text().strip() for name in Path("/proc/self/task").glob("*/comm")]


def main(out: str, average: str) -> None:
    world = distributed.start("cpu")
    torch.set_num_threads(1)
    result = step(world, average)
    if world.is_main:
        torch.save(result, out)
    del result
    distributed.end()
    left = [name for name in threads() if "gloo" in name]
    assert not left, f"threads that can abort the process as it ends: {left}"


if __name__ == "__main__":
    main(*sys.argv[1:])
