# SPDX-License-Identifier: Apache-2.0
"""What `bench/profile.sh` profiles stands between marks, for Nsight or for torch.profiler."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


@contextlib.contextmanager
def profiled(device: torch.device, trace: Path | None) -> Iterator[None]:
    """Profile the block: by torch.profiler into `trace`, else by the Nsight that watches a GPU.

    `trace` is a Chrome trace, .json or .json.gz; a summary by name is printed and put beside it as
    .txt.
    """
    gpu = device.type == "cuda"
    if trace is None:
        if gpu:
            torch.cuda.synchronize()
            torch.cuda.profiler.start()
        yield
        if gpu:
            torch.cuda.synchronize()
            torch.cuda.profiler.stop()
        return
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * gpu
    with profile(activities=activities, record_shapes=True) as seen:
        yield
        if gpu:
            torch.cuda.synchronize()
    trace.parent.mkdir(parents=True, exist_ok=True)
    seen.export_chrome_trace(str(trace))
    order = "device_time_total" if gpu else "cpu_time_total"
    table = seen.key_averages().table(sort_by=order, row_limit=40, max_name_column_width=50)
    summary = trace.with_name(trace.name.split(".json")[0] + ".txt")
    summary.write_text(table)
    print(table)
    print(f"-> {trace} (ui.perfetto.dev or chrome://tracing), {summary}")
