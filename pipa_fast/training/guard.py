# SPDX-License-Identifier: Apache-2.0
"""Steps whose gradients are not finite: dropped on the device, and counted there."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pipa_fast.bank import FeatureBank


class StepGuard:
    """Lets a step leave no trace where a gradient is infinite or not a number.

    The weights and the optimizer's state stay through `found_inf`, which torch's fused optimizers
    read on the device; buffers, as batch statistics, and banks of keys are put back. Gradients are
    the ranks' mean by then, so that all ranks decide alike. Nothing waits for the device but
    `counts`. An optimizer that knows no `found_inf`, apex's, costs one wait a step.
    """

    def __init__(self, modules: Iterable[nn.Module], optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        every = [part for module in modules for part in module.modules()]
        self.kept = [buffer for part in every for buffer in part.buffers(recurse=False)]
        banks = [part for part in every if isinstance(part, FeatureBank)]
        self.kept += [tensor for bank in banks for tensor in bank.state().values()]
        device = optimizer.param_groups[0]["params"][0].device
        self.counted = torch.zeros(2, dtype=torch.int64, device=device)  # in all, in a row
        self.bad: Tensor  # [] bool, of this step
        self.before: list[Tensor] = []  # as they were, before the step

    def begin(self) -> None:
        """Remember the buffers, before the forward pass."""
        self.before = [tensor.clone() for tensor in self.kept]

    def look(self) -> None:
        """Look at the gradients, before anything is made of them."""
        gradients = [
            p.grad
            for group in self.optimizer.param_groups
            for p in group["params"]
            if p.grad is not None
        ]
        largest = torch._foreach_norm(gradients, float("inf"))
        self.bad = ~torch.stack(largest).isfinite().all()

    def step(self, scaler: torch.amp.GradScaler) -> None:
        """Let the optimizer take its step, unless the gradients are bad, and count."""
        if scaler.is_enabled():  # it has looked for itself, and lowers its scale
            scaler.step(self.optimizer)
        elif getattr(self.optimizer, "_step_supports_amp_scaling", False):
            vars(self.optimizer)["found_inf"] = self.bad.float()
            self.optimizer.step()
            del vars(self.optimizer)["found_inf"]
        elif not self.bad:
            self.optimizer.step()
        scaler.update()
        for tensor, saved in zip(self.kept, self.before, strict=True):
            tensor.copy_(torch.where(self.bad, saved, tensor))
        self.before = []
        in_all, in_a_row = self.counted
        self.counted = torch.stack((in_all + self.bad, (in_a_row + 1) * self.bad))

    def counts(self) -> tuple[int, int]:
        """Return how many steps were dropped, in all and in a row up to now. Waits for them."""
        in_all, in_a_row = self.counted.tolist()
        return in_all, in_a_row
