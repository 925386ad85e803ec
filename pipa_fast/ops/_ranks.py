# SPDX-License-Identifier: Apache-2.0
"""Rows of every rank of a process group, in the order of ranks."""

from collections.abc import Iterator

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


def counts_of_ranks(group: str, tensor: Tensor) -> list[int]:
    """Return how many rows each rank holds: a collective wants to know its sizes.

    Hosts tell each other where the group has a backend for that, as one of "cpu:gloo,cuda:nccl"
    has. In a group of NCCL alone it is the one time that an op waits for the device.
    """
    ranks = _ranks(group)
    by_hosts = "cpu:" in dist.get_backend_config(ranks)
    count = torch.tensor([tensor.shape[0]], device="cpu" if by_hosts else tensor.device)
    counts = [torch.empty_like(count) for _ in range(ranks.size())]
    dist.all_gather(counts, count, group=ranks)
    return [int(n) for n in torch.cat(counts).tolist()]


def gather_padded(group: str, tensor: Tensor, counts: list[int], fill: float = 0) -> Tensor:
    """Return each rank's rows [W, largest count, ...], filled up where a rank holds fewer."""
    padded = tensor.new_full((max(counts), *tensor.shape[1:]), fill)
    padded[: tensor.shape[0]] = tensor
    gathered = tensor.new_empty((len(counts), *padded.shape))
    if padded.numel():
        dist.all_gather(list(gathered.unbind()), padded, group=_ranks(group))
    return gathered


def gather_rows(group: str, *tensors: Tensor) -> tuple[list[Tensor], int]:
    """Concatenate each tensor [N, ...] over the ranks, which may hold different N.

    Returns the tensors [sum of N, ...] and the row at which this rank's own begin.
    """
    if not group:
        return list(tensors), 0
    counts = counts_of_ranks(group, tensors[0])
    gathered = []
    for tensor in tensors:
        parts = gather_padded(group, tensor, counts)
        gathered.append(torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)]))
    return gathered, sum(counts[: place(group)[0]])


def join_rows(rows: Tensor, group: str) -> Tensor:
    """Return the rows of all ranks at once: each is one rank's, and 0 on the others.

    Every rank is to compute the same of them. Their gradient is multiplied by the number of ranks,
    so that DDP's mean of the parameters' gradients is exact.
    """
    if not group:
        return rows
    own = rows.detach()
    return sum_over_ranks(own, group) + place(group)[1] * (rows - own)


def exchange_rows(group: str, rows: Tensor, counts: list[int]) -> Iterator[tuple[int, Tensor]]:
    """Yield every other rank and its rows [count, ...], each received while the last is in use.

    In turn k, rank r sends its own rows to r + k and receives those of r - k: two buffers, however
    many ranks there are. Ranks without rows send nothing.
    """
    ranks = _ranks(group)
    rank, size = ranks.rank(), ranks.size()
    own = rows.contiguous()

    def start(turn: int) -> tuple[int, Tensor, list[dist.Work]]:
        to, peer = (rank + turn) % size, (rank - turn) % size
        received = rows.new_empty((counts[peer], *rows.shape[1:]))
        wanted = []
        if own.numel():
            wanted.append(dist.P2POp(dist.isend, own, group=ranks, group_peer=to))
        if received.numel():
            wanted.append(dist.P2POp(dist.irecv, received, group=ranks, group_peer=peer))
        return peer, received, dist.batch_isend_irecv(wanted) if wanted else []

    if size == 1:
        return
    following = start(1)
    for turn in range(1, size):
        peer, received, works = following
        for work in works:
            work.wait()
        if turn + 1 < size:
            following = start(turn + 1)
        if counts[peer]:
            yield peer, received


def sum_over_ranks(value: Tensor, group: str) -> Tensor:
    """Sum a tensor over the ranks; the same bits come out on each."""
    if group:
        value = value.clone()
        dist.all_reduce(value, group=_ranks(group))
    return value
