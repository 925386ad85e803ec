# SPDX-License-Identifier: Apache-2.0
"""A GPU where there is none: `start` has to come before anything imports torch.

What runs on it shows where tensors lie, what mixed precision casts and where the host would wait;
it shows nothing of a GPU's kernels, times or memory. Triton finds no driver for it, so that the
reference computes the ops.
"""

import contextlib
import ctypes
import importlib.util
import time
import types
from pathlib import Path
from typing import Any

from tests.compiled import library

ROOT = Path(__file__).resolve().parents[2]
NAME = "a pretended GPU"
CAPABILITY = (9, 0)


def torch_folder() -> Path:
    """Return where torch lies, without importing it."""
    found = importlib.util.find_spec("torch")
    assert found is not None and found.origin is not None
    return Path(found.origin).parent


def build() -> Path:
    """Return the library of device.cpp, compiled once for this torch and what the source says."""
    source, torch = ROOT / "tests/pretend/device.cpp", torch_folder()
    content = source.read_bytes() + (torch / "version.py").read_bytes()
    headers = [torch / "include", torch / "include/torch/csrc/api/include"]
    words = ["-std=c++20", *(f"-isystem{header}" for header in headers)]
    words += [f"-L{torch / 'lib'}", "-lc10", "-ltorch_cpu"]
    folder = ROOT / "build"
    folder.mkdir(exist_ok=True)
    return library(folder, source, content, words)


class Nothing(contextlib.nullcontext[None]):
    """A context that takes any arguments and does nothing."""

    def __init__(self, *_: Any) -> None:
        super().__init__()


class Stream:
    """The only stream there is; whoever waits for it has waited already."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.device = "cuda:0"

    def wait_stream(self, _: Any) -> None:
        """Do nothing."""

    synchronize = wait_event = wait_stream


class Event:
    """The time at which it was recorded, on the host's clock."""

    def __init__(self, **_: Any) -> None:
        self.time = 0.0

    def record(self, _: Any = None) -> None:
        """Take the time."""
        self.time = time.perf_counter()

    def elapsed_time(self, end: "Event") -> float:
        """Return the time until another event [ms]."""
        return 1e3 * (end.time - self.time)


def answer(value: Any) -> Any:
    """Return a function that returns a value, whatever it is asked."""
    return lambda *_, **__: value


def start(built: Path) -> None:
    """Load what `build` made, and let torch.cuda tell of one GPU.

    Raises:
        RuntimeError: torch is one for GPUs, or something has asked for CUDA's hooks before.
    """
    if (torch_folder() / "lib/libtorch_cuda.so").exists():
        raise RuntimeError("a GPU can be pretended to a torch without CUDA alone")
    for name in ("libc10.so", "libtorch_cpu.so"):
        ctypes.CDLL(str(torch_folder() / "lib" / name), ctypes.RTLD_GLOBAL)
    device = ctypes.CDLL(str(built))

    import torch
    import torch._dynamo  # it makes a table of the functions of torch.cuda, as they were
    import torch.utils._triton

    _tell_of_a_gpu(torch.cuda, device)
    torch._C._cuda_getDevice = torch._C._cuda_isInBadFork = answer(0)
    torch.utils._triton.has_triton = answer(False)

    kept = torch.UntypedStorage.clone

    def clone(self: Any) -> Any:  # torch makes storages of its own devices alone
        if self.device.type != "cuda":
            return kept(self)
        there = torch.empty(0, dtype=torch.uint8, device="cuda").set_(self)
        return there.clone().untyped_storage()

    torch.UntypedStorage.clone = clone
    if not torch.accelerator.is_available():
        raise RuntimeError("the pretended GPU came too late: torch has its hooks of CUDA already")


def _tell_of_a_gpu(cuda: Any, device: Any) -> None:
    """Let torch.cuda say what it would where there is one."""
    properties = types.SimpleNamespace(
        name=NAME, major=CAPABILITY[0], minor=CAPABILITY[1], L2_cache_size=1 << 20
    )

    def refuse_waits(mode: str) -> None:
        device.pretend_refuse_waits({"default": False, "error": True}[mode])

    def graph(_: Any) -> Any:
        raise RuntimeError("a pretended GPU has no graphs")

    answers = {
        "_is_compiled": True,
        "_lazy_init": None,
        "is_available": True,
        "is_initialized": True,
        "is_bf16_supported": True,
        "device_count": 1,
        "current_device": 0,
        "set_device": None,
        "synchronize": None,
        "get_device_name": NAME,
        "get_device_capability": CAPABILITY,
        "get_device_properties": properties,
        "manual_seed_all": None,
        "memory_allocated": 0,
        "max_memory_allocated": 0,
        "memory_reserved": 0,
        "mem_get_info": (1 << 33, 1 << 33),
        "reset_peak_memory_stats": None,
        "current_stream": Stream(),
    }
    for name, value in answers.items():
        setattr(cuda, name, answer(value))
    cuda.set_sync_debug_mode = refuse_waits
    cuda.Stream, cuda.Event = Stream, Event
    cuda.CUDAGraph, cuda.graph = object, graph
    cuda.stream = cuda.device = cuda.device_of = Nothing
