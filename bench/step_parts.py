# SPDX-License-Identifier: Apache-2.0
"""How long each part of a training step takes, by torch.profiler, how far memory rises, and work.

On a CPU the profiler costs some microseconds an operator, so that parts of many small ones look
larger than they are. On a GPU the host is elsewhere when a kernel runs: a part has the time of the
kernels that it started, and gaps between them are no part's.
"""

import contextlib
import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any
from unittest import mock

import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile
from torch.utils import flop_counter

from bench.memory import end_mark, reset_mark
from pipa_fast.data.batch import Batch
from pipa_fast.training import trainer as training
from pipa_fast.training.trainer import Trainer
from pipa_fast.uda import step

PARTS = (
    "forward:",
    "student:",
    "backward:",
    "objective:",
    "projection",
    "teacher",
    "mix",
    "mask",
    "augment crops",
    "optimizer",
    "ema",
    "pipa_fast::",
    "op:",
)
BACKWARD = ("op:gather_pixels", "projection")
STEP = "step"


def inside(event: FunctionEvent) -> Iterator[FunctionEvent]:
    """Yield an event and all below it."""
    yield event
    for child in event.cpu_children:
        yield from inside(child)


def host_time(event: FunctionEvent) -> float:
    """Return how long an event took the host [us], which on a CPU is all that there is."""
    return event.time_range.elapsed_us()


def kernel_time(events: Sequence[FunctionEvent]) -> Callable[[FunctionEvent], float]:
    """Return what tells how long a GPU computed what was started during an event [us].

    What was started then, by whichever thread: a backward pass starts its kernels from one of
    autograd's own, while the thread that asked for it waits.
    """
    launches = sorted(
        (event.time_range.start, sum(kernel.duration for kernel in event.kernels))
        for event in events
        if event.kernels and not event.is_user_annotation  # those span kernels, with their gaps
    )
    starts = [start for start, _ in launches]
    until = [0.0, *accumulate(duration for _, duration in launches)]

    def during(event: FunctionEvent) -> float:
        first = bisect_left(starts, event.time_range.start)
        return until[bisect_left(starts, event.time_range.end)] - until[first]

    return during


def totals(
    events: Sequence[FunctionEvent], time_of: Callable[[FunctionEvent], Any] = host_time
) -> tuple[Counter[str], Counter[str]]:
    """Return the time [us] and the number of calls of every part.

    The backward of BACKWARD's ranges, which is torch's, is found by the numbers of their forward.
    """
    time: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    owner = {e.sequence_nr: t.name for t in events if t.name in BACKWARD for e in inside(t)}
    owner.pop(-1, None)
    for event in events:
        if event.device_type != DeviceType.CPU:  # a GPU has ranges of the same names
            continue
        name = event.name
        if name.startswith("autograd::engine::evaluate_function"):
            name = f"{owner[event.sequence_nr]} backward" if event.sequence_nr in owner else ""
        if name == STEP or name.startswith(PARTS):
            time[name] += time_of(event)
            calls[name] += 1
    return time, calls


def parts_of(trainer: Trainer, batches: Sequence[Batch]) -> tuple[Counter[str], Counter[str]]:
    """Return what `totals` does, of one step on each batch."""
    gpu = trainer.world.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * gpu) as seen:
        for batch in batches:
            trainer._train_step(batch)
        if gpu:
            torch.cuda.synchronize()
    events = seen.events() or ()
    return totals(events, kernel_time(events) if gpu else host_time)


class MemoryRanges:
    """Stands in for `trace_range`: how far memory rose above its start while a range was open."""

    def __init__(self, device: torch.device) -> None:
        self.gpu = device.type == "cuda"
        self.rise: Counter[str] = Counter()
        self.open: list[list[int]] = []  # start and peak of each [bytes]

    def _turn(self) -> int:
        """Note the peak since the last turn in all open ranges; return what is there now."""
        peak = torch.cuda.max_memory_allocated() if self.gpu else end_mark()
        for mark in self.open:
            mark[1] = max(mark[1], peak)
        if self.gpu:
            torch.cuda.reset_peak_memory_stats()
            return torch.cuda.memory_allocated()
        return reset_mark()

    @contextlib.contextmanager
    def __call__(self, name: str, *values: Any) -> Iterator[None]:
        """Watch the block as a range."""
        now = self._turn()
        self.open.append([now, now])
        try:
            yield
        finally:
            self._turn()
            start, peak = self.open.pop()
            self.rise[name] = max(self.rise[name], peak - start)


def memory_of(trainer: Trainer, batch: Batch) -> Counter[str]:
    """Return how far memory rises in each phase of a step [bytes]."""
    ranges = MemoryRanges(trainer.world.device)
    with (
        mock.patch.object(step, "trace_range", ranges),
        mock.patch.object(training, "trace_range", ranges),
    ):
        trainer._train_step(batch)
    return ranges.rise


def _contrast_work(features: Sequence[int], *_: Any, **__: Any) -> int:
    return features[0] ** 2 * features[1]


def _contrast_backward_work(grad: Any, features: Sequence[int], *_: Any, **__: Any) -> int:
    return 3 * features[0] ** 2 * features[1]


def _consistency_work(
    anchors: Sequence[int], positives: Any, bank: Sequence[int], *_: Any, **__: Any
) -> int:
    return 4 * anchors[0] * bank[0] * anchors[1]


# PiPa's losses. Where the rows are the keys too, a pair's cosine is computed once, forward and
# again backward, and its gradient goes to both: N²D, and N²D + 2N²D. All pixels are counted, those
# without a label too. The consistency has its gradient already when its forward ends.
LOSSES = {
    torch.ops.pipa_fast.pixel_contrast: _contrast_work,
    torch.ops.pipa_fast.pixel_contrast_backward: _contrast_backward_work,
    torch.ops.pipa_fast.patch_consistency: _consistency_work,
}


def _attention_work(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return flop_counter.sdpa_flop_count(query, key, value)


def _attention_backward_work(
    grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any
) -> int:
    return flop_counter.sdpa_backward_flop_count(grad, query, key, value)


def _convolution_backward_work(
    grad: Sequence[int], x: Sequence[int], weight: Sequence[int], *rest: Any, **__: Any
) -> int:
    _, _, _, _, transposed, _, _, wanted = rest
    places = (x if transposed else grad)[2:]
    forward = 2 * grad[0] * math.prod(places) * math.prod(weight)
    return forward * sum(wanted[:2])


# torch's own table lacks the attention, and counts the gradient of a grouped convolution's weight
# as if it had one group.
TORCH = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_work,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_work,
    torch.ops.aten.convolution_backward: _convolution_backward_work,
}


class Work(flop_counter.FlopCounterMode):
    """Counts the products of a block [flop], but for what torch.compile has compiled."""

    def __init__(self) -> None:
        super().__init__(display=False, custom_mapping=LOSSES | TORCH)

    def of_losses(self) -> int:
        """Return the work of PiPa's losses."""
        return sum(self.get_flop_counts()["Global"].get(op, 0) for op in LOSSES)
