# SPDX-License-Identifier: Apache-2.0
"""Where each rank stands, so that who keeps the others waiting has a name."""

import faulthandler
import json
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

EVERY = 1.0  # s
KEY = "pipa_fast/rank/{}"
LOST = 4  # the exit status of a process that hangs, or waits for one that does


class Heartbeat:
    """Tells the ranks' store what this rank is doing, from a thread of its own, and ends a hang.

    Where `timeout` seconds pass and nothing new begins, the thread says where every Python thread
    is, calls `hung` with what `explain` returns, and ends the process with LOST: who hangs cannot
    raise an error. Several ranks have twice as long, as the others' collectives find out first.
    """

    def __init__(self, rank: int, size: int, timeout: float, hung: Callable[[str], None]) -> None:
        self.rank, self.size, self.hung = rank, size, hung
        self.limit = timeout if size == 1 else 2 * timeout
        self.at("start", 0)
        self.told: tuple[str, int, float] | None = None  # what the store knows
        self.ended = threading.Event()
        self.thread: threading.Thread | None = None

    def __enter__(self) -> "Heartbeat":
        if self.size > 1:
            # A connection of its own: the main one may be waiting in a collective.
            store: Any = dist.distributed_c10d._get_default_store()
            self.store = store.clone()
        self.at("start", 0)
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
        self.since = time.monotonic()  # a machine that slept has not hung

    def _beat(self) -> None:
        while not self.ended.wait(EVERY):
            if time.monotonic() - self.since > self.limit:
                faulthandler.dump_traceback()
                self.hung(self.explain())
                os._exit(LOST)
            if self.size > 1:
                self._share()

    def _share(self) -> None:
        now = self.now
        if now != self.told:
            try:
                self.store.set(KEY.format(self.rank), json.dumps(now))
            except (RuntimeError, dist.DistError):  # rank 0, who keeps the store, has gone
                return
            self.told = now

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
