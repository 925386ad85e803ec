# SPDX-License-Identifier: Apache-2.0
"""One job a run folder."""

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def lock_run(run_dir: Path) -> Iterator[None]:
    """Keep other jobs from a run's folder.

    The lock is the system's, on a file beside the folder, which may be renamed meanwhile. It goes
    with its process, however that ends: none is ever stale. Of the two kinds that there are it is
    the one that processes which load images do not inherit: they may outlive a killed trainer.

    Raises:
        ValueError: another job is at work there; its process and machine are named.
    """
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    path = run_dir.with_name(f".{run_dir.name}.lock")
    with open(path, "a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:  # which of them is the system's choice
            raise ValueError(
                f"{run_dir} is in use by {_holder(path)}: let it end, or give this run another "
                "--run.name"
            ) from error
        file.seek(0)
        file.truncate()
        json.dump({"host": socket.gethostname(), "pid": os.getpid()}, file)
        file.flush()
        yield


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text())
        return f"process {holder['pid']} on {holder['host']}"
    except (ValueError, LookupError, TypeError):  # it has not written its name yet
        return "another job"
