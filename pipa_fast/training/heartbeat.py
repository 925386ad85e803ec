# SPDX-License-Identifier: Apache-2.0
"""Where each rank stands, so that who keeps the others waiting has a name."""

import json
import threading
import time
from typing import Any

import torch.distributed as dist

EVERY = 1.0  # s
KEY = "pipa_fast/rank/{}"


class Heartbeat:
    """Tells the ranks' store what this rank is doing, from a thread of its own."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self.now = ("start", 0, time.time())
        self.ended = threading.Event()
        self.thread: threading.Thread | None = None

    def __enter__(self) -> "Heartbeat":
        if self.size > 1:
            # A connection of its own: the main one may be waiting in a collective.
            store: Any = dist.distributed_c10d._get_default_store()
            self.store = store.clone()
            self.thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
            self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        if self.thread is not None:
            self.thread.join()

    def at(self, phase: str, iteration: int) -> None:
        """Say what this rank begins."""
        self.now = (phase, iteration, time.time())

    def _beat(self) -> None:
        told = None
        while not self.ended.wait(EVERY):
            if self.now != told:
                try:
                    self.store.set(KEY.format(self.rank), json.dumps(self.now))
                except (RuntimeError, dist.DistError):  # rank 0, who keeps the store, has gone
                    return
                told = self.now

    def explain(self) -> str:
        """Return where each rank was last seen, those that stand furthest back first."""
        seen = {rank: found for rank in range(self.size) if (found := self._seen(rank))}
        silent = [f"rank {rank} has said nothing" for rank in range(self.size) if rank not in seen]
        order = sorted(seen, key=lambda rank: (seen[rank][1], seen[rank][2]))
        now = time.time()
        told = [
            f"rank {rank} is in {phase} of step {iteration} since {now - since:.0f} s"
            for rank in order
            for phase, iteration, since in [seen[rank]]
        ]
        return "; ".join(silent + told)

    def _seen(self, rank: int) -> tuple[str, int, float] | None:
        if rank == self.rank:
            return self.now
        try:
            if not self.store.check([KEY.format(rank)]):
                return None
            found: Any = json.loads(self.store.get(KEY.format(rank)))
        except (RuntimeError, dist.DistError):
            return None
        return found[0], found[1], found[2]
