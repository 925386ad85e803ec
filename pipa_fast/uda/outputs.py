# SPDX-License-Identifier: Apache-2.0
"""What one forward pass of a step hands to the objectives."""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from pipa_fast.data.batch import Batch
from pipa_fast.models import Outputs


class StepOutputs(NamedTuple):
    """The student's outputs on one group of images, and what there is to compare them with."""

    batch: Batch
    student: Outputs
    labels: Tensor  # [B, H, W] int64: of the source, the mixed images, or the teacher's on crops
    weights: Tensor | None  # [B, H, W] float32 in [0, 1], per pixel; None where all weigh 1
    confidence: Tensor | None  # [B, H, W] float32: the teacher's probability of its label
    seed: Tensor  # [] int64, of this run and iteration
    group: dist.ProcessGroup | None  # the ranks whose losses are one loss; None alone


def mean_over_ranks(value: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Average a tensor over the ranks of `group`, detached where there are several."""
    if group is None:
        return value
    value = value.detach().clone()
    dist.all_reduce(value, group=group)
    return value / dist.get_world_size(group)


def ramp(iteration: int, start: int, length: int) -> float:
    """Return the share of a weight at `iteration`: 0 before `start`, 1 from `start + length`."""
    if iteration < start:
        return 0.0
    return 1.0 if length == 0 else min(1.0, (iteration - start + 1) / length)


def mean_count(valid: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Return how many pixels are valid, the mean of all ranks'; 1 where there are none at all.

    Of several ranks it may be less than 1.
    """
    count = mean_over_ranks(valid.sum(), group)
    return torch.where(count > 0, count, 1)


def count_share(valid: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Return this rank's count of valid pixels over the mean count of all ranks.

    A mean over a rank's own valid pixels, times this, is a term of the mean over every rank's
    pixels once DDP has averaged the gradients.
    """
    return valid.sum() / mean_count(valid, group)
