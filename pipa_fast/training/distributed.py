# SPDX-License-Identifier: Apache-2.0
"""Ranks: start and end of the process group, and what one rank knows of the others."""

import gc
import inspect
import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pipa_fast.checks import require
from pipa_fast.models.config import BatchNorm


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


def batch_norm_of(setting: BatchNorm, world: World) -> BatchNorm:
    """Several ranks must compute what one rank would: synchronised on GPUs, frozen on CPUs."""
    if setting != "batch" or world.size == 1:
        return setting
    return "sync" if world.device.type == "cuda" else "frozen"


def data_parallel(student: nn.Module, world: World) -> DistributedDataParallel:
    """Let ranks share gradients. Buffers stay as they are: BN is frozen or synchronised."""
    # torch 2.13 renamed the option.
    known = inspect.signature(DistributedDataParallel).parameters
    sync = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    return DistributedDataParallel(
        student,
        device_ids=[world.local_rank] if world.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        **{sync: False},  # type: ignore[arg-type]
    )


def waited_in_vain(error: BaseException) -> bool:
    """Return whether a collective failed since a rank did not come, or went."""
    text = str(error)
    known = ("Timed out", "timeout", "Connection closed by peer", "Connection reset", "Broken pipe")
    return isinstance(error, dist.DistError) or any(words in text for words in known)


def end() -> None:
    """Leave the process group, if there is one.

    Call it when nothing that used the group is alive: a DistributedDataParallel keeps the group,
    and with it gloo's threads, which may still be dropping the last collective's tensors. One that
    asks for the interpreter's lock while the interpreter shuts down aborts the process.
    """
    if dist.is_initialized():
        gc.collect()
        dist.destroy_process_group()
