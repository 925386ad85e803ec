# SPDX-License-Identifier: Apache-2.0
"""Losses over a group of gloo processes against one process that holds everybody's rows."""

import itertools
import os

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from pipa_fast import losses, ops
from pipa_fast.ops import _pixel_contrast_ranks
from pipa_fast.training import distributed

# How many rows each rank holds, and a class that only the first rank has.
SPLITS = {2: [(5, 9), (8, 0), (0, 0)], 3: [(4, 1, 7), (0, 6, 3)], 4: [(3, 0, 5, 2), (1, 1, 1, 1)]}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}


def rows(n, dtype):
    return F.normalize(torch.randn(n, 6, dtype=torch.float64), dim=1).to(dtype)


def cases(world):
    """Each case is what the whole group holds, from the same seed on every rank."""
    torch.manual_seed(world)
    for counts in SPLITS[world]:
        n = sum(counts)
        labels = torch.randint(0, 3, (n,))
        labels[: counts[0]] = torch.where(labels[: counts[0]] == 0, 8, labels[: counts[0]])
        labels[n - 1 :] = 255
        weights = torch.rand(n)
        for dtype in TOLERANCE:
            yield counts, rows(n, dtype), rows(n, dtype), rows(n, dtype), labels, weights


def own(rank, counts):
    start = sum(counts[:rank])
    return slice(start, start + counts[rank])


def compare(loss, whole, x, all_x, part, group):
    """The value is the whole's on every rank, the gradient the number of ranks times our part."""
    tolerance = TOLERANCE[x.dtype]
    world = dist.get_world_size(group)
    loss.backward()
    whole.backward()
    torch.testing.assert_close(loss, whole, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(x.grad, world * all_x.grad[part], rtol=0, atol=10 * tolerance)
    values = [torch.empty_like(loss) for _ in range(world)]
    dist.all_gather(values, loss.detach(), group=group)
    assert len({value.item() for value in values}) == 1


def ways(dtype):
    """Who computes, and whether features are gathered (a limit in bytes) or go round."""
    able = ["reference"]
    if dtype != torch.float64 and "cpu" in ops.backends("pixel_contrast", "cpu"):
        able.append("cpu")
    return itertools.product(able, ("1000000", "0"))


def check_pixels(all_x, labels, weights, part, group):
    x = all_x[part]
    for (backend, limit), denominator, all_w in itertools.product(
        ways(x.dtype), ("negatives", "all"), (None, weights)
    ):
        os.environ["PIPA_FAST_GATHER_BYTES"] = limit
        settings = {"denominator": denominator, "temperature": 0.2}
        whole_x, own_x = (t.clone().requires_grad_() for t in (all_x, x))
        w = None if all_w is None else all_w[part]
        loss = ops.pixel_contrast(
            own_x, labels[part], weights=w, group=group, backend=backend, **settings
        )
        whole = ops.pixel_contrast(whole_x, labels, weights=all_w, backend="reference", **settings)
        compare(loss, whole, own_x, whole_x, part, group)


def check_patches(all_x, all_p, all_k, labels, weights, part, banks, group):
    """The banks are split unlike the anchors."""
    bank_labels = labels.flip(0)
    for backend, _ in ways(all_x.dtype):
        whole_x, x = (t.clone().requires_grad_() for t in (all_x, all_x[part]))
        loss = ops.patch_consistency(
            x, all_p[part], all_k[banks], labels[part], bank_labels[banks],
            weights=weights[part], group=group, backend=backend,
        )  # fmt: skip
        whole = ops.patch_consistency(
            whole_x, all_p, all_k, labels, bank_labels, weights=weights, backend="reference"
        )
        compare(loss, whole, x, whole_x, part, group)


def check_ops(rank, world, group):
    for counts, all_x, all_p, all_k, labels, weights in cases(world):
        part, banks = own(rank, counts), own(rank, counts[::-1])
        check_pixels(all_x, labels, weights, part, group)
        check_patches(all_x, all_p, all_k, labels, weights, part, banks, group)


def check_wire(rank, world, group):
    """Rows in bfloat16 go as they are: half of float32's bytes, and the group's loss is theirs."""
    torch.manual_seed(3)
    all_x, labels = rows(8 * world, torch.bfloat16), torch.arange(8 * world) % 3
    part = own(rank, [8] * world)
    x = all_x[part].clone().requires_grad_()
    sent = []
    gather = _pixel_contrast_ranks.gather_padded

    def watch(group, tensor, *rest):
        sent.append((tensor.dtype, tensor.shape[1:]))
        return gather(group, tensor, *rest)

    _pixel_contrast_ranks.gather_padded = watch
    try:
        os.environ["PIPA_FAST_GATHER_BYTES"] = "1000000"
        loss = ops.pixel_contrast(x, labels[part], group=group)
        loss.backward()
    finally:
        _pixel_contrast_ranks.gather_padded = gather
    whole_x = all_x.double().requires_grad_()
    ops.pixel_contrast(whole_x, labels).backward()
    assert [dtype for dtype, shape in sent if shape == (6,)] == [torch.bfloat16] * 2
    torch.testing.assert_close(x.grad.double(), world * whole_x.grad[part], rtol=0.02, atol=1e-3)


def check_modules(rank, world, group):
    """Contrast of a batch split by images is that of the whole batch, and DDP's mean is exact.

    Dense, and sampled: with slots that no pixel fills, and a rank that owns no anchors.
    """
    torch.manual_seed(1)
    images, labels = torch.randn(2 * world, 4, 3, 5), torch.randint(0, 3, (2 * world, 6, 10))
    labels[:2] = 255
    weights = torch.rand(2 * world, 6, 10)
    part = slice(2 * rank, 2 * rank + 2)
    for num_anchors in ("all", 20 * world, 20 * world + 1):
        torch.manual_seed(2)
        whole_net, net = (torch.nn.Conv2d(4, 6, 1) for _ in range(2))
        net.load_state_dict(whole_net.state_dict())
        loss_fn = losses.PixelContrastLoss(num_anchors=num_anchors)
        whole = loss_fn(whole_net(images), labels, weights=weights, seed=3)
        whole.backward()
        ddp = torch.nn.parallel.DistributedDataParallel(net, process_group=group)
        given = {"weights": weights[part], "seed": 3, "group": group.group_name}
        loss = loss_fn(ddp(images[part]), labels[part], **given)
        loss.backward()
        assert whole > 0
        torch.testing.assert_close(loss, whole, rtol=1e-6, atol=0)
        torch.testing.assert_close(net.weight.grad, whole_net.weight.grad, rtol=1e-5, atol=1e-6)


def check(rank, world):
    group = dist.new_group(list(range(world)))
    if rank < world:
        check_ops(rank, world, group)
        check_wire(rank, world, group)
        check_modules(rank, world, group)


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=4
    )
    for world in SPLITS:
        check(rank, world)
    distributed.end()


def test_group_is_one_loss(tmp_path):
    """Groups of two, three and four, in four processes."""
    mp.start_processes(work, (str(tmp_path),), nprocs=4, start_method="fork")
