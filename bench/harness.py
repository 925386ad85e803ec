# SPDX-License-Identifier: Apache-2.0
"""Checks contenders against float64, then times those that are right, in turns.

One call of a contender is a training step's: forward with a graph, then backward; the three modes
come from the same calls. A contender that is wrong, or does not fit, gets a row that says so and
no time.
"""

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.call import Clock, Outcome, step
from bench.contenders import Contender
from bench.dispatch import Dispatched
from bench.machine import available_bytes
from bench.memory import peak_of_process, without_memory
from bench.problem import Problem, Settings, make, relative, rounded, short

# What is another function and not merely rounded: the relative errors of value and gradient that
# are refused. docs/precision.md holds what rounding may do.
WRONG = {"float32": (1e-5, 1e-4), "float16": (2e-3, 1e-2), "bfloat16": (1e-2, 5e-2)}
BAND = 2**28  # elements of the divisor's output: larger products are taken in bands of rows
GRAPH_ROWS = 8192  # up to here a GPU also replays forward and backward as a CUDA graph
MM = "torch.mm"


class Effort(NamedTuple):
    """How long to measure."""

    seconds: float = 20  # of timing for a problem, all contenders together
    warmup: float = 0.3  # seconds of calls before the first that counts, each contender
    repeats: int = 5  # at least so many calls; three where a call takes over a second
    limit: float = 60  # a contender whose one call would take longer [s] is left out
    memory: bool = True  # measure peak memory (on a CPU: in a process of its own)


def truth(problem: Problem) -> Outcome:
    """Return what the float64 reference gives for the same, already rounded, inputs."""
    given = {name: rounded(value, torch.float64) for name, value in problem.arguments.items()}
    leaf = rounded(problem.features.detach(), torch.float64)
    leaf.requires_grad_(problem.differentiable)
    value = problem.truth(leaf, **given)
    if not problem.differentiable:
        return Outcome(value, None, {})
    start = rounded(problem.gradient, torch.float64)
    gradient = torch.autograd.grad(value, leaf, start)[0]
    return Outcome(value.detach(), gradient, {})


def refusal(problem: Problem, errors: dict[str, Any]) -> str:
    """Return why a contender with these errors is wrong, "" for one that is right."""
    for (what, error), bar in zip(
        errors.items(), WRONG[problem.settings.dtype], strict=len(errors) == 2
    ):
        if error is not None and not error <= bar:  # not a number is wrong too
            return f"wrong: {what} {error:.1e}"
    return ""


def check(problem: Problem, function: Callable[..., Any], true: Outcome) -> tuple[str, dict]:
    """Call a contender once; return "ok" or what is wrong, and its columns.

    These are its errors against the truth and, where the problem asks, what it dispatched.
    """
    with Dispatched() if problem.count else contextlib.nullcontext() as seen:
        found = step(problem, function)
    errors = {"value_error": problem.value_error(found.value, true.value), "grad_error": None}
    if found.gradient is not None and true.gradient is not None:
        errors["grad_error"] = relative(found.gradient, true.gradient)
    status = refusal(problem, errors) or "ok"
    if seen is None:
        return status, errors
    counts = {"operators": seen.operators.total(), "waits": seen.waits.total()}
    return status, errors | counts


def examine(
    problem: Problem, contender: Contender, true: Outcome, effort: Effort, expected: float
) -> tuple[dict[str, Any], Callable[..., Any] | None]:
    """Return a contender's columns, and its function where it may be timed."""
    settings, device = problem.settings, problem.features.device
    free, need = available_bytes(device), contender.pair_bytes * problem.pairs
    found: dict[str, Any] = {"status": contender.why_not(settings), "peak_bytes": None}
    if found["status"]:
        return found, None
    if need > free:
        return found | {"status": f"out of memory: needs some {need / 2**30:.0f} GiB"}, None
    if expected > effort.limit:
        how = "as at a smaller size" if math.isinf(expected) else f"some {expected:.0f} s a call"
        return found | {"status": f"too slow: {how}"}, None
    if effort.memory and device.type == "cpu":
        found |= peak_of_process(settings, contender.name, torch.get_num_threads())
        if found["status"] != "ok":
            return found, None
    try:
        function = contender.make()
        if device.type == "cuda":
            check(problem, function, true)  # loads and compiles: the next call shows the memory
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
        found["status"], columns = check(problem, function, true)
        if device.type == "cuda" and effort.memory:
            found["peak_bytes"] = torch.cuda.max_memory_allocated(device) - before
    except Exception as error:  # a peer's, of any kind: the others go on
        if without_memory(error):
            return found | {"status": "out of memory"}, None
        return found | {"status": f"failed: {type(error).__name__}: {str(error)[:200]}"}, None
    return found | columns, function if found["status"] == "ok" else None


def product(problem: Problem) -> Callable[[], Any]:
    """Return the divisor: one torch.mm into memory set aside, in bands where it is very large.

    On a CPU it is float32's, which 16-bit inputs are measured by too.
    """
    assert problem.product is not None
    a, b = (x.float() if x.device.type == "cpu" else x for x in problem.product)
    height = max(1, min(len(a), BAND // max(1, len(b))))
    out = torch.empty(height, len(b), dtype=a.dtype, device=a.device)
    bands = a.split(height)

    def run() -> None:
        for rows in bands:
            torch.mm(rows, b.T, out=out[: len(rows)])

    return run


def timed(run: Callable[[], Any], device: torch.device, mode: str) -> Callable[[], dict]:
    """Return a call that runs something and returns its time under one mode's name [ms]."""

    def once() -> dict[str, float]:
        clock = Clock(device)
        clock.mark()
        run()
        clock.mark()
        return {mode: clock.spans()[0]}

    return once


def graphed(problem: Problem, function: Callable[..., Any]) -> Callable[[], Any] | None:
    """Return the replay of forward and backward as a CUDA graph; None where it can't be caught."""
    graph = torch.cuda.CUDAGraph()
    leaf = problem.features.detach().clone().requires_grad_()
    try:
        with torch.cuda.graph(graph):
            torch.autograd.grad(function(leaf, **problem.arguments), leaf, problem.gradient)
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    return graph.replay


def interleave(
    calls: dict[str, Callable[[], dict[str, float]]],
    effort: Effort,
    between: Callable[[], Any] = lambda: None,
) -> dict[str, dict[str, list[float]]]:
    """Return the times [ms] of each call's modes, the calls taken in turns.

    A B A B …: a busy moment meets all alike. A call that is ahead of the others by more than its
    own length waits, so that slow ones don't use up the time. `between` runs before each.
    """
    for call in calls.values():
        end = time.perf_counter() + effort.warmup
        call()
        while time.perf_counter() < end:
            call()
    samples: dict[str, dict[str, list[float]]] = {name: {} for name in calls}
    spent, counts = dict.fromkeys(calls, 0.0), dict.fromkeys(calls, 0)

    def lacking(name: str) -> bool:
        slow = spent[name] > 1.0 * max(1, counts[name])
        return counts[name] < (min(3, effort.repeats) if slow else effort.repeats)

    end = time.perf_counter() + effort.seconds
    while time.perf_counter() < end or any(map(lacking, calls)):
        for name, call in calls.items():
            own = spent[name] / max(1, counts[name])
            late = time.perf_counter() >= end
            if not lacking(name) and (late or spent[name] > min(spent.values()) + own):
                continue
            between()
            start = time.perf_counter()
            for mode, ms in call().items():
                samples[name].setdefault(mode, []).append(ms)
            spent[name] += time.perf_counter() - start
            counts[name] += 1
    return samples


def measure(
    settings: Settings,
    contenders: Sequence[Contender],
    effort: Effort,
    expected: dict[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Return rows: the product's, and for each contender one a mode, or one that says why not.

    `expected` holds how long a call of a contender should take [s], where that is known.
    """
    problem, expected = make(settings), expected or {}
    true = truth(problem)
    device = problem.features.device
    calls: dict[str, Callable[[], dict[str, float]]] = {}
    columns: dict[str, dict[str, Any]] = {}
    if problem.product is not None:
        calls[MM] = timed(product(problem), device, "product")
    for contender in contenders:
        name = contender.name
        columns[name], function = examine(problem, contender, true, effort, expected.get(name, 0.0))
        if function is None:
            continue
        calls[name] = lambda f=function: step(problem, f).ms
        if device.type == "cuda" and problem.differentiable and settings.n <= GRAPH_ROWS:
            replay = graphed(problem, function)
            if replay is not None:
                calls[f"{name} graph"] = timed(replay, device, "graph")
    del true
    samples = interleave(calls, effort, cold_cache(device))
    return rows(problem, contenders, columns, samples)


def cold_cache(device: torch.device) -> Callable[[], Any]:
    """Return what empties a GPU's L2 cache before a call, as a training step would have."""
    if device.type != "cuda":
        return lambda: None
    size = 2 * torch.cuda.get_device_properties(device).L2_cache_size
    return torch.empty(max(size, 2**20), dtype=torch.uint8, device=device).zero_


def quantiles(values: list[float]) -> dict[str, Any]:
    """Return the columns of a list of times [ms]."""
    cuts = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    found = torch.tensor(values, dtype=torch.float64).quantile(cuts).tolist()
    times: dict[str, float] = dict(zip(("p20_ms", "p50_ms", "p80_ms"), found, strict=True))
    return times | {"repeats": len(values)}


def rows(
    problem: Problem,
    contenders: Sequence[Contender],
    columns: dict[str, dict[str, Any]],
    samples: dict[str, dict[str, list[float]]],
) -> list[dict[str, Any]]:
    """Return one row for each thing timed or refused; bench/results/README.md tells the columns."""
    s = problem.settings
    base = {"op": s.op, "variant": s.variant, "dtype": s.dtype, "n": s.n, "d": s.d, "seed": s.seed}
    base |= problem.facts
    made, floor = [], None
    if MM in samples:
        times = quantiles(samples[MM]["product"])
        floor, a = times["p50_ms"], problem.product[0] if problem.product else None
        flop = 2 * problem.pairs * s.d
        made.append(
            base
            | {"contender": MM, "title": "one torch.mm", "ours": False, "mode": "product"}
            | {"status": "ok", "product_dtype": product_dtype(a), "flop": flop}
            | {"gflops": flop / floor * 1e-6, "products": 1.0, "fraction": 1.0}
            | times
        )
    for contender in contenders:
        head = {"contender": contender.name, "title": contender.title, "ours": contender.ours}
        head = base | head | columns[contender.name]
        if contender.name not in samples:
            made.append(head | {"mode": problem.modes[-1]})
            continue
        found = {m: samples[contender.name][m] for m in problem.modes}
        found |= samples.get(f"{contender.name} graph", {})
        for mode, values in found.items():
            times = quantiles(values)
            row = head | {"mode": mode} | times
            if mode != problem.modes[-1]:
                row["peak_bytes"] = None  # it is that of the whole call
            made.append(row | rates(problem, mode, times["p50_ms"], floor))
    return made


def product_dtype(a: Tensor | None) -> str:
    """Return in which dtype the divisor computes."""
    if a is None or a.device.type == "cpu":
        return "float32"
    return short(a.dtype)


def rates(problem: Problem, mode: str, ms: float, floor: float | None) -> dict[str, Any]:
    """Return useful work, its rate, and both beside the product's."""
    flop = problem.flop("both" if mode == "graph" else mode)
    if flop is None or floor is None:
        return {"flop": None, "gflops": None, "products": None, "fraction": None}
    one = 2 * problem.pairs * problem.settings.d
    return {
        "flop": flop,
        "gflops": flop / ms * 1e-6,
        "products": ms / floor,  # time in units of the product's
        "fraction": flop / ms / (one / floor),  # useful rate in units of the product's
    }
