# SPDX-License-Identifier: Apache-2.0
"""Times a problem's backends beside one matrix product, in turns, and says how right they are."""

import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipa_fast import ops


class Problem(NamedTuple):
    """One size of an op, ready to run."""

    loss: Callable[[Tensor, str], Tensor]  # features and a backend's name -> []
    features: Tensor  # [N, D] float32 unit rows: what takes a gradient
    keys: Tensor  # [M, D] float32 unit rows: the product's other side
    passes: dict[str, int]  # products [N, D] x [D, M] that "forward" and "full" amount to


def unit_rows(n: int, d: int, generator: torch.Generator) -> Tensor:
    """Return [n, d] random rows of length one."""
    return torch.nn.functional.normalize(torch.randn(n, d, generator=generator), dim=1)


def measure(op: str, problem: Problem, *, seconds: float) -> list[dict[str, Any]]:
    """Return a row for the product and for each backend and mode, with times and errors.

    Every backend runs in turn, round after round, so that a busy machine slows all alike. The
    product writes to memory set aside before, so that it is the arithmetic alone.
    """
    x, keys = problem.features, problem.keys
    product = torch.empty(len(x), len(keys), device=x.device)
    calls: dict[tuple[str, str], Callable[[], Any]] = {
        ("torch.mm", "product"): lambda: torch.mm(x, keys.T, out=product)
    }
    errors = {}
    for backend in ops.backends(op, x.device):
        calls[backend, "forward"] = lambda b=backend: problem.loss(x, b)
        calls[backend, "full"] = lambda b=backend: gradient(problem, x, b)
        errors[backend] = error(problem, backend)
    times = interleave(calls, x.device, seconds)

    floor = times["torch.mm", "product"][1]
    rows = []
    for (backend, mode), (p20, p50, p80, repeats) in times.items():
        flops = 2 * len(x) * len(keys) * x.shape[1] * problem.passes.get(mode, 1)
        loss_error, grad_error = errors.get(backend, (None, None))
        rows.append(
            {"op": op, "backend": backend, "mode": mode, "n": len(x), "m": len(keys)}
            | {"d": x.shape[1], "dtype": str(x.dtype).removeprefix("torch.")}
            | {"p20_ms": p20, "p50_ms": p50, "p80_ms": p80, "repeats": repeats}
            | {"products": p50 / floor, "gflops": flops / p50 * 1e-6}
            | {"loss_error": loss_error, "grad_error": grad_error}
        )
    return rows


def gradient(problem: Problem, x: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    """Return the loss [] and its gradient [N, D]."""
    leaf = x.detach().requires_grad_()
    loss = problem.loss(leaf, backend)
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def error(problem: Problem, backend: str) -> tuple[float, float]:
    """Return the relative errors of a backend's loss and gradient against the float64 reference."""
    loss, grad = gradient(problem, problem.features, backend)
    true_loss, true_grad = gradient(problem, problem.features.double(), "reference")
    return (
        float((loss - true_loss).abs() / true_loss.abs()),
        float((grad - true_grad).norm() / true_grad.norm()),
    )


def interleave(
    calls: dict[tuple[str, str], Callable[[], Any]], device: torch.device, seconds: float
) -> dict[tuple[str, str], tuple[float, float, float, int]]:
    """Run every call in turn for `seconds` in all and return its 20, 50, 80 % quantiles [ms]."""

    def once(call: Callable[[], Any]) -> float:
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - start) * 1e3

    for call in calls.values():  # the first call loads code and sets memory aside
        once(call)
    samples: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(samples.values()))) < 5:
        for key, call in calls.items():
            samples[key].append(once(call))
    quantiles = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    result = {}
    for key, values in samples.items():
        p20, p50, p80 = torch.tensor(values, dtype=torch.float64).quantile(quantiles).tolist()
        result[key] = (p20, p50, p80, len(values))
    return result


def machine(device: torch.device) -> dict[str, Any]:
    """Return what a timing depends on besides the problem."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    root = Path(__file__).parent
    git = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": git.stdout.strip() or "unknown",
    }


def device_name(device: torch.device) -> str:
    """Return the GPU's name, or the processor's as the system tells it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
