# SPDX-License-Identifier: Apache-2.0
"""Batch norm of several ranks, each a gloo process, against torch's own of the whole batch."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from pipa_fast.models.batch_norm import SyncBatchNorm2d, convert_batch_norm

SPLIT = (1, 3, 2)  # images of each rank
NEAR = {
    torch.float64: {"rtol": 1e-9, "atol": 1e-10},
    torch.float32: {"rtol": 1e-4, "atol": 1e-4},
    torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2},
}


def layer(dtype):
    torch.manual_seed(0)
    made = nn.Sequential(nn.BatchNorm2d(5, momentum=0.3)).to(dtype)
    nn.init.normal_(made[0].weight)
    nn.init.normal_(made[0].bias)
    return made


def passes(made, x, weights):
    """Two forward passes, whose statistics add up, and the gradients of the second."""
    x = x.clone().requires_grad_()
    made(x - 2)
    y = made(x)
    (y.float() * weights).sum().backward()
    return y.detach(), x.grad


def work(rank, folder):
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=len(SPLIT)
    )
    first = sum(SPLIT[:rank])
    part = slice(first, first + SPLIT[rank])
    for dtype, near in NEAR.items():
        torch.manual_seed(1)
        # far from 0, where a difference of squares would cancel
        x, weights = torch.randn(6, 5, 3, 4) + 30, torch.randn(6, 5, 3, 4)
        x = x.to(dtype)
        state = torch.float32 if dtype == torch.bfloat16 else dtype
        whole, ours = layer(state), layer(state)
        expected, slope = passes(whole, x, weights)
        convert_batch_norm(ours, "sync")
        assert type(ours[0]) is SyncBatchNorm2d
        y, grad = passes(ours, x[part], weights[part])
        assert y.dtype == grad.dtype == dtype
        torch.testing.assert_close(y, expected[part], **near)
        torch.testing.assert_close(grad, slope[part], **near)
        for name, value in whole.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-4, atol=1e-4)
        for name, parameter in ours.named_parameters():
            dist.all_reduce(parameter.grad)
            torch.testing.assert_close(parameter.grad, whole.get_parameter(name).grad, **near)
        torch.testing.assert_close(ours.eval()(x[part]), whole.eval()(x)[part], **near)
    with pytest.raises(ValueError, match="4D"):
        ours.train()(torch.randn(5, 3, 4))
    dist.destroy_process_group()


def test_statistics_of_all_ranks(tmp_path):
    mp.start_processes(work, (str(tmp_path),), nprocs=len(SPLIT), start_method="fork")


def test_of_one_rank_it_is_torchs():
    plain, ours = layer(torch.float32), layer(torch.float32)
    convert_batch_norm(ours, "sync")
    x = torch.randn(6, 5, 3, 4)
    for found, expected in zip(passes(ours, x, x), passes(plain, x, x), strict=True):
        assert torch.equal(found, expected)
