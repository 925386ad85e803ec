# SPDX-License-Identifier: Apache-2.0
"""What a measurement depends on besides the problem: device, threads, versions, memory."""

import contextlib
import importlib.metadata
import platform
import resource
import subprocess
from pathlib import Path
from typing import Any

import torch

FLAGS = ("fma", "avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")
"""Instruction sets that matter to the kernels, the widest of a processor last."""


def machine(device: torch.device) -> dict[str, Any]:
    """Return the columns of every row that tell where it was measured."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    root = Path(__file__).parent
    git = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    return {
        "device": device_name(device),
        "cpu_flags": " ".join(cpu_flags()),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "triton": triton_version(),
        "commit": git.stdout.strip() or "unknown",
    }


def device_name(device: torch.device) -> str:
    """Return the GPU's name, or the processor's as the system tells it, with its generation.

    A virtual machine may call processors of several generations the same: family and model differ.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = cpu_lines("model name")[:1] or [platform.processor() or platform.machine()]
    family, model = cpu_lines("cpu family"), cpu_lines("model")
    if family and model:
        name += ["family", family[0], "model", model[0]]
    return " ".join(name)


def cpu_flags() -> list[str]:
    """Return those of FLAGS that this processor has."""
    words = " ".join(cpu_lines("flags") + cpu_lines("Features")).split()
    return [flag for flag in FLAGS if flag in words]


def cpu_lines(key: str) -> list[str]:
    """Return the values that /proc/cpuinfo gives a key, one for each processor; [] elsewhere."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    pairs = [line.split(":", 1) for line in lines if ":" in line]
    return [value.strip() for name, value in pairs if name.strip() == key]


def triton_version() -> str:
    """Return Triton's version, "absent" without it."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version("triton")
    return "absent"


def available_bytes(device: torch.device) -> int:
    """Return how much a contender may take: free memory, within the control group's limit."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept  # by torch, of what others have freed
    found = [2**63]
    info = Path("/proc/meminfo")
    if info.exists():
        free = [x for x in info.read_text().splitlines() if x.startswith("MemAvailable")]
        found += [int(line.split()[1]) * 1024 for line in free]
    return min([*found, *group_limits()])


def group_limits() -> list[int]:
    """Return what the control groups of this process leave it, versions 1 and 2."""
    own = Path("/proc/self/cgroup")
    found = []
    for line in own.read_text().splitlines() if own.exists() else []:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        root = Path("/sys/fs/cgroup/memory")
        if not controllers:
            names, root = ("memory.max", "memory.current"), Path("/sys/fs/cgroup")
        for folder in (root, root / path.lstrip("/")):
            with contextlib.suppress(OSError, ValueError):  # absent, or "max"
                limit, used = (int((folder / name).read_text()) for name in names)
                found.append(max(0, limit - used))
    return found


def cap_memory() -> None:
    """Make torch raise where this process wants more than there is, instead of being killed."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    cap = available_bytes(torch.device("cpu"))
    if cap < 2**62:
        resource.setrlimit(resource.RLIMIT_DATA, (cap, hard))
