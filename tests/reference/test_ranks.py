# SPDX-License-Identifier: Apache-2.0
"""Losses over a group of gloo processes against one process that holds everybody's rows."""

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from pipa_fast import losses, ops
from pipa_fast.training import distributed

# How many rows each rank holds, and a class that only the first rank has.
SPLITS = {2: [(5, 9), (8, 0), (0, 0)], 3: [(4, 1, 7), (0, 6, 3)]}
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


def check_ops(rank, world, group):
    for counts, all_x, all_p, all_k, labels, weights in cases(world):
        part = own(rank, counts)
        for denominator in ("negatives", "all"):
            for all_w in (None, weights):
                w = None if all_w is None else all_w[part]
                whole_x, x = (t.clone().requires_grad_() for t in (all_x, all_x[part]))
                settings = {"denominator": denominator, "temperature": 0.2}
                loss = ops.pixel_contrast(x, labels[part], weights=w, group=group, **settings)
                whole = ops.pixel_contrast(
                    whole_x, labels, weights=all_w, backend="reference", **settings
                )
                compare(loss, whole, x, whole_x, part, group)
        whole_x, x = (t.clone().requires_grad_() for t in (all_x, all_x[part]))
        bank_labels = labels.flip(0)
        # the banks are split unlike the anchors
        banks = own(rank, counts[::-1])
        loss = ops.patch_consistency(
            x, all_p[part], all_k[banks], labels[part], bank_labels[banks],
            weights=weights[part], group=group,
        )  # fmt: skip
        whole = ops.patch_consistency(
            whole_x, all_p, all_k, labels, bank_labels, weights=weights, backend="reference"
        )
        compare(loss, whole, x, whole_x, part, group)


def check_modules(rank, world, group):
    """Dense contrast of a batch split by images is that of the whole batch; DDP's mean is exact."""
    torch.manual_seed(1)
    images, labels = torch.randn(2 * world, 4, 3, 5), torch.randint(0, 3, (2 * world, 6, 10))
    part = slice(2 * rank, 2 * rank + 2)
    torch.manual_seed(2)
    whole_net, net = (torch.nn.Conv2d(4, 6, 1) for _ in range(2))
    net.load_state_dict(whole_net.state_dict())
    loss_fn = losses.PixelContrastLoss(num_anchors="all")
    loss_fn(whole_net(images), labels).backward()
    ddp = torch.nn.parallel.DistributedDataParallel(net, process_group=group)
    loss_fn(ddp(images[part]), labels[part], group=group.group_name).backward()
    torch.testing.assert_close(net.weight.grad, whole_net.weight.grad, rtol=1e-5, atol=1e-6)


def check(rank, world):
    group = dist.new_group(list(range(world)))
    if rank < world:
        check_ops(rank, world, group)
        check_modules(rank, world, group)


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=3
    )
    for world in (2, 3):
        check(rank, world)
    distributed.end()


def test_group_is_one_loss(tmp_path):
    """Groups of two and of three, in three processes: starting them is what takes time."""
    mp.spawn(work, args=(str(tmp_path),), nprocs=3)
