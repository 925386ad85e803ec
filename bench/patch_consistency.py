# SPDX-License-Identifier: Apache-2.0
"""What is timed of `ops.patch_consistency`: N anchors against a bank of 9600 detached keys."""

import torch
from torch import Tensor

from bench.harness import Problem, unit_rows
from pipa_fast import ops

SIZES = (1024, 4096)
BANK = 9600  # PiPa's: 1600 cells of 2 views over 3 steps


def problem(n: int, d: int, *, device: torch.device, seed: int) -> Problem:
    """Return N random anchors with positives near them, and the bank, in 19 classes."""
    generator = torch.Generator().manual_seed(seed)
    anchors, bank = unit_rows(n, d, generator), unit_rows(BANK, d, generator)
    noise = 0.3 * unit_rows(n, d, generator)
    positives = torch.nn.functional.normalize(anchors + noise, dim=1).to(device)
    labels = torch.randint(19, (n,), generator=generator).to(device)
    bank_labels = torch.randint(19, (BANK,), generator=generator).to(device)
    keys = bank.to(device)

    def loss(x: Tensor, backend: str) -> Tensor:
        p, k = positives.to(x.dtype), keys.to(x.dtype)
        return ops.patch_consistency(x, p, k, labels, bank_labels, backend=backend)

    # the keys are frozen: one pass for the sums, one for the gradient
    passes = {"forward": 1, "full": 2}
    return Problem(loss=loss, features=anchors.to(device), keys=keys, passes=passes)
