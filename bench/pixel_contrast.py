# SPDX-License-Identifier: Apache-2.0
"""What is timed of `ops.pixel_contrast`: InfoNCE among N unit rows of 19 classes."""

import torch
from torch import Tensor

from bench.harness import Problem, unit_rows
from pipa_fast import ops

SIZES = (1024, 4096)


def problem(n: int, d: int, *, device: torch.device, seed: int) -> Problem:
    """Return N random rows with Cityscapes-like class shares (half of the rows in two classes)."""
    generator = torch.Generator().manual_seed(seed)
    shares = torch.tensor([0.35, 0.2, 0.15] + [0.3 / 16] * 16)
    labels = torch.multinomial(shares, n, replacement=True, generator=generator).to(device)
    features = unit_rows(n, d, generator).to(device)

    def loss(x: Tensor, backend: str) -> Tensor:
        return ops.pixel_contrast(x, labels, backend=backend)

    # one pass is 2*N*N*D flops: one forward; two backward, where the matrix is symmetric
    return Problem(loss=loss, features=features, keys=features, passes={"forward": 1, "full": 3})
