# SPDX-License-Identifier: Apache-2.0
import json
from contextlib import nullcontext

import pytest
import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent

from bench import __main__ as command_line
from bench.peers.step import lineage
from bench.step import Contender
from bench.step_parts import MemoryRanges, Work, kernel_time, totals
from pipa_fast import ops
from pipa_fast.training import distributed
from pipa_fast.training.config import load, merge, read_recipe
from pipa_fast.training.trainer import Trainer

SMALL = {
    "data": {"crop": [32, 64], "patch_crop": [32, 32], "batch_size": 2, "rare_class": False},
    "adaptation": {
        "mixed": {"threshold": 0.05},
        "masked": {"weight": 1.0, "block": 8},
        "features": {"weight": 0.1, "classes": list(range(19)), "min_ratio": 0.2},
        # all pixels, as the two ways draw differently
        "pixel": {"num_anchors": "all", "images": "source"},
        "patch": {"confidence_threshold": 0.0, "bank_confidence": 0.0, "start": 0, "ramp": 0},
    },
    "model": {"hrda": {"enabled": True, "detail": [16, 16]}},
}


def losses_and_gradients(way):
    trainer = Trainer(load(merge(read_recipe("streets_pipa"), SMALL)), distributed.start("cpu"))
    with torch.no_grad():
        for parameter in trainer.network.parameters():
            parameter.mul_(1.01)
    trainer.network.train()
    with way:
        losses = trainer.step(next(trainer._batches()), 0)
    return losses, {n: p.grad for n, p in trainer.network.named_parameters()}


def test_the_lineages_way_computes_the_same_step():
    ours, own = losses_and_gradients(torch.enable_grad())
    theirs, other = losses_and_gradients(lineage())
    assert ours.keys() == theirs.keys() and len(ours) == 6
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-4, atol=1e-6)
    for name, value in own.items():
        error = (other[name] - value).norm() / value.norm().clamp(min=1e-8)
        assert error < 1e-2, f"{name}: {error:.1e}"


def test_the_ops_are_back_afterwards():
    before = ops.pixel_contrast
    with pytest.raises(RuntimeError, match="on purpose"), lineage():
        assert ops.pixel_contrast is not before
        raise RuntimeError("on purpose")
    assert ops.pixel_contrast is before


def test_the_bench_of_a_step_runs(tmp_path):
    out = tmp_path / "rows.json"
    words = ["step", "--recipe", "streets_pipa", "--steps", "1", "--json", str(out), "--"]
    words += ["--data.crop", "[32, 64]", "--data.batch_size", "1", "--data.rare_class", "false"]
    command_line.main(words)
    rows = {row["part"]: row for row in map(json.loads, out.read_text().splitlines())}
    names = {"step, ours", "step, lineage", "mix", "PiPa without its encoder passes"}
    assert names <= rows.keys()
    assert rows["step, ours"]["ms"] > 0
    phases = ("forward:source", "backward:patch", "teacher", "mix", "optimizer", "ema")
    assert all(rows[phase]["rise_bytes"] >= 0 for phase in phases)
    share = rows["PiPa without its encoder passes"]["share"]
    assert 0 < share < 1
    assert 0 < rows["work of PiPa's losses"]["flop"] < rows["work of a step"]["flop"]


def test_every_term_of_a_benched_step_has_work():
    small = {"data": SMALL["data"]}
    config = load(merge(read_recipe("streets_pipa"), small))
    trainer = Contender("ours", config, nullcontext, reads=False).trainer
    losses = trainer._train_step(next(trainer._batches()))
    assert len(losses) == 5 and all(value > 0 for value in losses.values()), losses


def test_memory_of_ranges_holds_that_of_ranges_inside():
    ranges = MemoryRanges(torch.device("cpu"))
    with ranges("outer"):
        with ranges("inner"):
            block = torch.ones(16, 1 << 20)  # 64 MB
        del block
        with ranges("small"):
            torch.ones(1 << 10)
    assert 60e6 < ranges.rise["inner"] <= ranges.rise["outer"] < 200e6
    assert ranges.rise["small"] < 30e6


def test_work_of_the_losses_and_of_everything():
    rows, bank = torch.rand(6, 8, requires_grad=True), torch.rand(5, 8)
    labels = torch.tensor([0, 0, 1, 1, 2, 255])
    with Work() as work:
        loss = ops.pixel_contrast(rows, labels)
        loss = loss + ops.patch_consistency(rows, rows.detach(), bank, labels, labels[:5])
        loss.backward()
    assert work.of_losses() == work.get_total_flops() == 4 * 6 * 6 * 8 + 4 * 6 * 5 * 8
    query = torch.rand(1, 2, 6, 4, requires_grad=True)
    with Work() as work:
        torch.nn.functional.scaled_dot_product_attention(query, query, query).sum().backward()
    # two products forward, five backward, of 6 x 6 x 4 in each of two heads
    assert (work.of_losses(), work.get_total_flops()) == (0, 2 * 7 * 2 * 6 * 6 * 4)
    images = torch.rand(2, 6, 5, 5, requires_grad=True)
    for groups in (1, 3):
        weight = torch.rand(9, 6 // groups, 3, 3, requires_grad=True)
        with Work() as work:
            torch.nn.functional.conv2d(images, weight, padding=1, groups=groups).sum().backward()
        # forward, and the same for each gradient
        assert work.get_total_flops() == 3 * 2 * (2 * 5 * 5) * 9 * (6 // groups) * 9


def event(name, start, end, *kernels, **more):
    """What torch.profiler saw, in microseconds; kernels that it started, by how long each took."""
    made = FunctionEvent(0, name, thread=1, start_us=start, end_us=end, **more)
    for duration in kernels:
        made.append_kernel("a_kernel", 0, duration)
    return made


def test_parts_on_a_gpu_have_the_time_of_the_kernels_that_they_started():
    """The host is done long before the GPU is, and autograd starts its kernels elsewhere."""
    events = [
        # from first kernel to last, with gaps
        event("step", 0, 100, 9000, is_user_annotation=True),
        event("forward:source", 10, 30, is_user_annotation=True),
        event("aten::mm", 12, 13, 500, 20),
        event("pipa_fast::pixel_contrast", 20, 25, 300),
        event("backward:source", 40, 90, is_user_annotation=True),
        event("aten::mm", 50, 51, 1000),
        event("step", 400, 9400, device_type=DeviceType.CUDA, is_user_annotation=True),
    ]
    time, calls = totals(events, kernel_time(events))
    assert calls["step"] == 1
    assert time == {
        "step": 1820,
        "forward:source": 820,
        "pipa_fast::pixel_contrast": 300,
        "backward:source": 1000,
    }
    assert totals(events)[0]["backward:source"] == 50, "the host's"
