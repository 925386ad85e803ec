# SPDX-License-Identifier: Apache-2.0
"""One rank's share of a training step's images."""

from typing import NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """Images and labels of B slots; all tensors, so that it moves to a device whole.

    Images are float32 RGB in [0, 1], labels int64 train ids with 255 where there is none.
    """

    iteration: Tensor  # [] int64
    index: Tensor  # [B] int64, slot in the step's whole batch, over all ranks
    source_image: Tensor  # [B, 3, h, w]
    source_label: Tensor  # [B, h, w]
    target_image: Tensor  # [B, 3, h, w]
    target_valid: Tensor  # [B, h, w] bool, where the teacher's labels may count
    target_crops: Tensor  # [B, 2, 3, c, c'] overlapping crops of a target image; [0, ...] unused
    boxes: Tensor  # [B, 2, 4] int64, y0 x0 y1 x1 of the crops in image pixels
    flips: Tensor  # [B, 2] bool, which crops are mirrored left to right

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on `device`."""
        return Batch(*(value.to(device, non_blocking=True) for value in self))
