# SPDX-License-Identifier: Apache-2.0
"""The extra memory of one forward and backward on a CPU, as the operating system sees it.

A fresh process makes the problem, calls the contender on a small one, so that code and thread
pools are there, resets its high-water mark, calls it once, and reports how far the mark rose above
what was resident. This counts what torch's profiler does not (scratch from malloc, a library's own
buffers); pages of one call less than a megabyte are noise.

The gradient [N, D] is in it; inputs are not.
"""

import contextlib
import ctypes
import gc
import json
import re
import resource
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from bench.call import step
from bench.contenders import find
from bench.machine import cap_memory
from bench.problem import Problem, Settings, make

ROOT = Path(__file__).resolve().parent.parent
SMALL = 256  # rows of the call that warms up


def without_memory(error: BaseException) -> bool:
    """Return whether an exception says that memory ran out."""
    words = ("out of memory", "can't allocate memory", "Cannot allocate memory", "bad_alloc")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        word in str(error) for word in words
    )


def peak_of_process(settings: Settings, contender: str, threads: int) -> dict[str, Any]:
    """Return {"status": "ok", "peak_bytes": …} of a contender, or a status that says what broke."""
    command = [sys.executable, "-m", "bench.memory"]
    task = json.dumps({"settings": asdict(settings), "contender": contender, "threads": threads})
    done = subprocess.run(
        command, input=task, capture_output=True, text=True, cwd=ROOT, check=False
    )
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    if done.returncode == -9:
        return {"status": "out of memory", "peak_bytes": None}
    last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    return {"status": f"failed: {last[:200]}", "peak_bytes": None}


def status_bytes(key: str) -> int:
    """Return a line of /proc/self/status, in bytes."""
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found.group(1)) * 1024 if found else 0


def trim() -> None:
    """Give freed memory back to the system, so that what is used again shows."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def start_mark() -> int:
    """Give freed memory back, reset the high-water mark and return what is resident [bytes]."""
    trim()
    return reset_mark()


def reset_mark() -> int:
    """Reset the high-water mark and return what is resident [bytes]."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return status_bytes("VmRSS")
    except OSError:  # no such file, or not allowed: the mark of the whole life serves
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def end_mark() -> int:
    """Return the high-water mark [bytes]."""
    own = status_bytes("VmHWM") if Path("/proc/self/status").exists() else 0
    return own or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak_bytes(problem: Problem, function: Any, compiled: bool) -> int:
    """Return how far resident memory rises while a contender runs once, here and now."""
    # A compiler's own memory isn't the step's: it compiles for this size first.
    small = replace(problem.settings, n=min(SMALL, problem.settings.n))
    step(problem if compiled else make(small), function)
    before = start_mark()
    step(problem, function)
    return max(0, end_mark() - before)


def main() -> None:
    """Measure what standard input describes, and print it as the last line."""
    task = json.load(sys.stdin)
    settings = Settings(**task["settings"])
    torch.set_num_threads(task["threads"])
    cap_memory()
    try:
        contender = find(settings.op, torch.device(settings.device), task["contender"])
        peak = peak_bytes(make(settings), contender.make(), contender.compiled)
        print(json.dumps({"status": "ok", "peak_bytes": peak}))
    except Exception as error:
        if not without_memory(error):
            raise
        print(json.dumps({"status": "out of memory", "peak_bytes": None}))


if __name__ == "__main__":
    main()
