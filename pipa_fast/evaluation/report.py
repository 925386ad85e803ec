# SPDX-License-Identifier: Apache-2.0
"""A run's report: one HTML file that needs no network and no scripts."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn

from pipa_fast.data.datasets import Dataset
from pipa_fast.data.files import write_whole
from pipa_fast.evaluation.embedding import Projection, collect_embeddings, project
from pipa_fast.evaluation.inference import SlidingWindow
from pipa_fast.evaluation.panels import Panel, collect_panels, save_panels, spread_indices
from pipa_fast.evaluation.report_sections import (
    curves_section,
    document,
    embedding_section,
    footer,
    headline,
    iou_section,
    panels_section,
    settings_section,
)
from pipa_fast.evaluation.runs import Run, read_run


def write_report(
    run_dir: Path | str,
    *,
    network: nn.Module | None = None,
    dataset: Dataset | None = None,
    teacher: nn.Module | None = None,
    baseline_dir: Path | str | None = None,
    baseline: nn.Module | None = None,
    initial: nn.Module | None = None,
    num_panels: int = 5,
    device: torch.device | str = "cpu",
    image_size: tuple[int, int] | None = None,
    window: SlidingWindow | None = None,
    flip: bool = False,
) -> Path:
    """Write `report.html` and `panels.png` into a finished run's folder; return the report's path.

    The folder holds results.json, config.yaml and history.jsonl. `network` (the student) and
    `dataset` (validation) give panels and embeddings, which are left out without them.
    `baseline_dir` is a source-only run to compare with, `baseline` its network; without one,
    embeddings are compared with those of `initial`, the network before training. Networks are
    moved to `device` and left in the mode they were in; they see images at `image_size`,
    through `window` and, with `flip`, mirrored too: see `evaluation.inference.predict_logits`.

    Raises:
        ValueError: a folder is not that of a finished run, or only one of network and dataset is
            given.
    """
    if (network is None) != (dataset is None):
        raise ValueError("network and dataset must be given together, or neither")
    run_dir = Path(run_dir)
    run = read_run(run_dir)
    base = None if baseline_dir is None else read_run(baseline_dir)
    panels: list[Panel] = []
    before = after = None
    if network is not None and dataset is not None:
        for module in (network, teacher, baseline, initial):
            if module is not None:
                module.to(device)
        indices = spread_indices(len(dataset), num_panels)
        view = {"image_size": image_size, "window": window, "flip": flip}
        panels = collect_panels(network, teacher, dataset, indices, baseline, device=device, **view)
        of = {"image_size": image_size, "device": device}
        after = project(collect_embeddings(network, dataset, **of))
        earlier = initial if baseline is None else baseline
        if earlier is not None:
            before = project(collect_embeddings(earlier, dataset, **of))
        save_panels(panels, run_dir / "panels.png", names=run.names)
    before_name = "before training" if baseline is None else "source-only"
    text = render(run, base, panels, before, before_name, after)
    path = run_dir / "report.html"
    write_whole(path, partial(Path.write_text, data=text, encoding="utf-8"))
    return path


def render(
    run: Run,
    base: Run | None,
    panels: Sequence[Panel],
    before: Projection | None,
    before_name: str,
    after: Projection | None,
) -> str:
    """Return the report as HTML; what is absent is left out."""
    return document(
        f"{run.recipe}: mIoU {run.miou:.1f}",
        [
            headline(run, base),
            panels_section(panels, run.names),
            iou_section(run, base),
            curves_section(run, base),
            embedding_section(before, before_name, after, run.names),
            settings_section(run, base),
            footer(run, base),
        ],
    )
