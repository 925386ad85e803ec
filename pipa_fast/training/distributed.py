# SPDX-License-Identifier: Apache-2.0
"""Ranks: start and end of the process group, and what one rank knows of the others."""

import gc
import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from pipa_fast.checks import require


@dataclass(frozen=True)
class World:
    """This process among the ranks of a run."""

    rank: int
    size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and prints."""
        return self.rank == 0

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The group of all ranks; None for a run of one."""
        return dist.group.WORLD if self.size > 1 else None


def start(device: str = "auto", timeout: timedelta = timedelta(minutes=10)) -> World:
    """Join the process group that torchrun describes, or run alone.

    Args:
        device: "cpu", "cuda", or "auto" for a GPU where there is one.
        timeout: how long a collective waits for a rank before it fails.

    Raises:
        ValueError: "cuda" was asked for and there is none, or fewer GPUs than processes.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device must be 'cpu' or 'auto' on a machine without a GPU; got 'cuda'")
    use_cuda = device != "cpu" and torch.cuda.is_available()
    rank = int(os.environ.get("RANK", "0"))
    size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    target = torch.device("cuda", local_rank) if use_cuda else torch.device("cpu")
    if use_cuda:
        count = torch.cuda.device_count()
        expected = f"below {count}, the number of GPUs here: start no more processes than that"
        require(local_rank < count, "LOCAL_RANK", local_rank, expected)
        torch.cuda.set_device(target)
    if size > 1 and not dist.is_initialized():
        # gloo for what the hosts agree on: it makes no GPU wait.
        backend = "cpu:gloo,cuda:nccl" if use_cuda else "gloo"
        dist.init_process_group(backend, timeout=timeout, rank=rank, world_size=size)
    return World(rank, size, local_rank, target)


def end() -> None:
    """Leave the process group, if there is one.

    Call it when nothing that used the group is alive: a DistributedDataParallel keeps the group,
    and with it gloo's threads, which may still be dropping the last collective's tensors. One that
    asks for the interpreter's lock while the interpreter shuts down aborts the process.
    """
    if dist.is_initialized():
        gc.collect()
        dist.destroy_process_group()
