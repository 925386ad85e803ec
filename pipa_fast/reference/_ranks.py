# SPDX-License-Identifier: Apache-2.0
"""Rows of every rank of a process group, in the order of ranks."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import _resolve_process_group


def _ranks(group: str) -> dist.ProcessGroup:
    return _resolve_process_group(group)  # pyright: ignore[reportArgumentType]


def place(group: str) -> tuple[int, int]:
    """Return (rank, number of ranks) in the named group; (0, 1) for ""."""
    if not group:
        return 0, 1
    ranks = _ranks(group)
    return ranks.rank(), ranks.size()


def gather_rows(group: str, *tensors: Tensor | None) -> tuple[list[Tensor | None], int]:
    """Concatenate each tensor [N, ...] over the ranks, which may hold different N.

    Returns the tensors [sum of N, ...] (None stays None) and the row at which this rank's own
    begin. Counts are exchanged first, and reading them is the one time that an op waits for the
    device: a collective wants to know its sizes.
    """
    if not group:
        return list(tensors), 0
    ranks = _ranks(group)
    given = [t for t in tensors if t is not None]
    count = torch.tensor([given[0].shape[0]], device=given[0].device)
    counts_of_ranks = [torch.empty_like(count) for _ in range(ranks.size())]
    dist.all_gather(counts_of_ranks, count, group=ranks)
    counts = [int(n) for n in torch.cat(counts_of_ranks).tolist()]
    gathered = [None if t is None else _gather(t, counts, ranks) for t in tensors]
    return gathered, sum(counts[: ranks.rank()])


def _gather(tensor: Tensor, counts: list[int], ranks: dist.ProcessGroup) -> Tensor:
    longest = max(counts)
    if longest == 0:
        return tensor
    # Backends want equal shapes of all ranks, so that short ones are padded.
    padded = tensor.new_zeros(longest, *tensor.shape[1:])
    padded[: tensor.shape[0]] = tensor
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded, group=ranks)
    return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])


def sum_over_ranks(value: Tensor, group: str) -> Tensor:
    """Sum a tensor over the ranks; the same bits come out on each."""
    if group:
        value = value.clone()
        dist.all_reduce(value, group=_ranks(group))
    return value
