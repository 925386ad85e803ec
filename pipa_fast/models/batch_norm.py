# SPDX-License-Identifier: Apache-2.0
"""Batch norm by other statistics than those of a rank's own batch (`model.batch_norm`)."""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pipa_fast.models.config import BatchNorm

CELLS = (0, 2, 3)  # all dimensions of [B, C, h, w] but the channels


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """Batch norm by stored statistics also in training; scale and shift still learn."""

    def train(self, mode: bool = True) -> "FrozenBatchNorm2d":
        """Stay in evaluation mode."""
        super().train(False)
        return self


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Batch norm by the statistics of all ranks' batches, which may differ in size.

    torch's SyncBatchNorm, which computes the same, reads the ranks' counts back in each forward
    pass, so that the host waits for the GPU (`torch/nn/modules/_functions.py`); and it has no
    kernels for CPUs.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, C, h, w], in training with a mean of 0 and a variance of 1 over all ranks."""
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        if not self.training or ranks == 1:
            return super().forward(x)
        self._check_input_dim(x)
        mean, var, count = statistics_of_ranks(x.detach(), ranks)
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (count / (count - 1)), self.momentum)
        return _Normalize.apply(x, self.weight, self.bias, mean, var, count, self.eps)


def statistics_of_ranks(x: Tensor, ranks: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and variance [C] over all ranks' maps [B, C, h, w], and their cells' number [].

    Variances are put together around the common mean (Chan et al., 1979): differences of squares
    would cancel.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    var, mean = torch.var_mean(wide, CELLS, correction=0)
    own = torch.cat((mean, var, mean.new_full((1,), x.numel() / x.shape[1])))
    every = own.new_empty(ranks, own.shape[0])
    dist.all_gather(list(every.unbind()), own)
    means, variances, counts = every.split((x.shape[1], x.shape[1], 1), dim=1)
    count = counts.sum()
    share = counts / count
    mean = (share * means).sum(0)
    var = (share * (variances + (means - mean).square())).sum(0)
    return mean, var, count


class _Normalize(torch.autograd.Function):
    """Normalise by given statistics, which are those of all ranks' inputs."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # [B, C, h, w]
        weight: Tensor,  # [C]
        bias: Tensor,  # [C]
        mean: Tensor,  # [C]
        var: Tensor,  # [C]
        count: Tensor,  # [] of cells on all ranks
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, (var + eps).rsqrt(), count)
        return F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, count = ctx.saved_tensors
        grad, unit = grad.to(mean.dtype), (x - _maps(mean)) * _maps(scale)
        own = torch.stack((grad.sum(CELLS), (grad * unit).sum(CELLS)))
        total = own.clone()
        dist.all_reduce(total)
        pull = grad - _maps(total[0] / count) - unit * _maps(total[1] / count)
        return (_maps(weight * scale) * pull).to(x.dtype), own[1], own[0], None, None, None, None


def _maps(values: Tensor) -> Tensor:
    """Return values [C] as maps of one cell."""
    return values[:, None, None]


def convert_batch_norm(network: nn.Module, kind: BatchNorm) -> None:
    """Give the batch norm layers inside `network` the statistics that `kind` names, in place."""
    if kind == "batch":
        return
    made_by = {"frozen": FrozenBatchNorm2d, "sync": SyncBatchNorm2d}[kind]
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if type(child) is not nn.BatchNorm2d:
                continue
            made = made_by(child.num_features, child.eps, child.momentum).to(child.weight)
            made.load_state_dict(child.state_dict())
            setattr(parent, name, made.train())
