# SPDX-License-Identifier: Apache-2.0
"""Two processes at once, for what ranks do together."""

import multiprocessing
from collections.abc import Callable
from typing import Any


def on_two_ranks(work: Callable[..., None], *arguments: Any) -> None:
    """Run work(rank, *arguments) in a process for each rank; both must end well."""
    context = multiprocessing.get_context("fork")  # spawn would import torch twice more
    processes = [context.Process(target=work, args=(rank, *arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
