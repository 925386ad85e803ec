# SPDX-License-Identifier: Apache-2.0
"""Times what is written by hand outside the engine beside the library that does it, and compares.

python -m bench.libraries

The results must be equal before anything is timed. Times are medians of interleaved runs, ratios
are what to read. docs/own_code.md tells what else is written by hand, and why.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchmetrics.classification import MulticlassConfusionMatrix

from pipa_fast.evaluation.metrics import ConfusionMatrix
from pipa_fast.models import ModelConfig, build_network
from pipa_fast.uda.teacher import Teacher, momentum

REPEATS = 15
ITERATION = 100


def confusion() -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Return ours and torchmetrics' counts of one Cityscapes image, a tenth of it ignored."""
    torch.manual_seed(0)
    truth = torch.randint(0, 19, (1, 1024, 2048))
    truth[torch.rand(truth.shape) < 0.1] = 255
    predicted = torch.randint(0, 19, truth.shape)

    def ours() -> Tensor:
        found = ConfusionMatrix(19)
        found.update(predicted, truth)
        return found.matrix

    def theirs() -> Tensor:
        found = MulticlassConfusionMatrix(num_classes=19, ignore_index=255)
        found.update(predicted, truth)
        return found.compute()

    return ours, theirs


def average() -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return ours and torch's exponential moving average of MiT-B0 with DAFormer's head."""
    torch.manual_seed(0)
    student = build_network(ModelConfig(encoder="mit_b0", head="daformer", projections=False))
    teacher = Teacher(student)
    decay = get_ema_multi_avg_fn(momentum(ITERATION, teacher.ceiling))
    averaged = AveragedModel(student, multi_avg_fn=decay, use_buffers=False)
    averaged.n_averaged.fill_(1)  # the first call copies
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.1)
    mine, others = list(teacher.network.parameters()), list(averaged.module.parameters())

    def ours() -> Any:
        teacher.update(student, ITERATION)
        return mine

    def theirs() -> Any:
        averaged.update_parameters(student)
        return others

    return ours, theirs


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    """Print the table."""
    table = Table(box=SIMPLE)
    for column in ("what", "library", "ours [ms]", "theirs [ms]", "theirs / ours"):
        table.add_column(column, justify="left" if len(table.columns) < 2 else "right")
    for what, library, (ours, theirs) in (
        ("confusion matrix of 1024 x 2048", "torchmetrics", confusion()),
        ("teacher's update, 7 M parameters", "torch AveragedModel", average()),
    ):
        torch.testing.assert_close(ours(), theirs())
        times = [(seconds(ours), seconds(theirs)) for _ in range(REPEATS)]
        mine, other = (1e3 * statistics.median(t) for t in zip(*times, strict=True))
        table.add_row(what, library, f"{mine:.2f}", f"{other:.2f}", f"{other / mine:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
