# SPDX-License-Identifier: Apache-2.0
"""Ranges of steps, phases and ops: how they nest, what they carry, and that off they do nothing."""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from pipa_fast import ops, trace
from pipa_fast.trace import launch_range, trace_range, traced
from pipa_fast.training import distributed
from pipa_fast.training.config import load, merge, read_recipe
from pipa_fast.training.trainer import Trainer


class Range(NamedTuple):
    name: str
    payload: tuple[int, ...] | None
    above: tuple[str, ...]


class Recorder:
    """Stands in for the package nvtx with a tool attached."""

    def __init__(self) -> None:
        self.seen: list[Range] = []
        self.open: list[str] = []

    @contextlib.contextmanager
    def annotate(self, message=None, color=None, domain=None, category=None, payload=None):
        assert domain == "pipa_fast"
        self.seen.append(Range(message, payload, tuple(self.open)))
        self.open.append(message)
        try:
            yield
        finally:
            assert self.open.pop() == message

    def named(self, name: str) -> Range:
        return next(r for r in self.seen if r.name == name)


@pytest.fixture
def nsight(monkeypatch) -> Iterator[Recorder]:
    recorder = Recorder()
    monkeypatch.setattr(trace, "NSIGHT", True)
    monkeypatch.setattr(trace, "nvtx", recorder)
    yield recorder
    assert not recorder.open


def test_a_step_its_phases_and_its_ops_nest_and_carry_sizes(nsight):
    small = {
        "data": {"crop": [32, 64], "patch_crop": [32, 32], "batch_size": 2, "rare_class": False},
        "adaptation": {"patch": {"start": 0, "ramp": 0, "confidence_threshold": 0.0}},
        "model": {"pixel_dim": 24, "patch_dim": 16},
    }
    trainer = Trainer(load(merge(read_recipe("streets_pipa"), small)), distributed.start("cpu"))
    trainer.iteration = trainer.config.iterations // 2  # every term counts
    trainer._train_step(next(trainer._batches()))
    target, crops = (2, 3, 32, 64), (2, 2, 3, 32, 32)
    for name, payload, above in (
        ("data", None, ()),
        ("load", None, ("data",)),
        ("step", target, ()),
        ("forward:source", target, ("step",)),
        ("forward:patch", crops, ("step",)),
        ("student:source", target, ("step", "forward:source")),
        ("teacher", target, ("step", "forward:mixed")),
        ("op:pseudo_labels", None, ("step", "forward:mixed", "teacher")),
        ("mix", target, ("step", "forward:mixed")),
        ("objective:pixel_source", None, ("step",)),
        ("op:sample_anchors", None, ("step", "objective:pixel_source")),
        ("op:pixel_contrast", None, ("step", "objective:pixel_source")),
        ("op:patch_consistency", None, ("step", "objective:patch")),
        ("op:pixel_contrast_backward", None, None),
        ("optimizer", None, ("step",)),
        ("ema", None, ("step",)),
    ):
        found = nsight.named(name)
        assert payload is None or found.payload == payload, name
        assert above is None or found.above == above, name
    # the backward pass runs in its phase, and sees the rows that the op was given
    backward = nsight.named("op:pixel_contrast_backward")
    assert backward.above[0] == "step" and backward.above[1].startswith("backward:")
    rows = nsight.named("op:pixel_contrast").payload
    assert rows is not None and rows[1] == 24 and backward.payload[:2] == rows
    anchors, _, positives, _, _, dim = nsight.named("op:patch_consistency").payload
    assert anchors == positives and dim == 16
    assert nsight.named("op:gather_pixels").payload[1] == 24


def test_payload_is_of_tensors_with_two_dimensions_or_more(nsight):
    with trace_range("a", torch.ones(5, 2), torch.ones(7), None, 3, torch.ones(4, 1, 6)):
        pass
    with launch_range("b", torch.ones(7)):
        pass
    assert nsight.seen == [Range("a", (5, 2, 4, 1, 6), ()), Range("b", None, ())]


def test_ops_called_by_keyword_carry_sizes(nsight):
    ops.gather_pixels(features=torch.ones(2, 3, 4, 4), index=torch.tensor([0, 1]))
    assert nsight.named("op:gather_pixels").payload == (2, 3, 4, 4)


def test_ranges_close_when_their_work_raises(nsight):
    with pytest.raises(RuntimeError, match="on purpose"), trace_range("outer"):
        raise RuntimeError("on purpose")
    with pytest.raises(ValueError, match="features"):
        ops.gather_pixels(torch.ones(2), torch.tensor([0]))
    assert not nsight.open


class Untouched(torch.Tensor):
    """A tensor of which nothing may be asked."""

    @property
    def shape(self):
        raise AssertionError("a size was looked at")

    ndim = shape


def test_nothing_is_looked_at_or_opened_when_off(monkeypatch):
    monkeypatch.setattr(trace, "NSIGHT", False)
    monkeypatch.setattr(trace, "nvtx", None)
    values = torch.ones(2, 2).as_subclass(Untouched)
    for mark in (trace_range, launch_range):
        assert mark("a", values) is trace.NOTHING  # made once, not for each range
        with mark("a", values), mark("b", values):
            pass
    assert traced("a")(lambda x: 5)(values) == 5


def test_no_tool_is_attached_to_the_tests():
    assert not trace.NSIGHT


def test_the_profiler_shows_ranges_and_each_op_once():
    rows = torch.nn.functional.normalize(torch.randn(8, 8), dim=1)
    with profile(activities=[ProfilerActivity.CPU]) as seen, trace_range("outer", rows):
        ops.pixel_contrast(rows, torch.arange(8) % 2)
        ops.gather_pixels(torch.ones(1, 3, 4, 4), torch.tensor([0]))
    names = [event.name for event in seen.events()]
    assert names.count("outer") == names.count("op:gather_pixels") == 1
    assert names.count("pipa_fast::pixel_contrast") == 1 and "op:pixel_contrast" not in names


@pytest.mark.parametrize("listening", [False, True])
def test_a_compiled_program_holds_no_range(listening, monkeypatch):
    """Else it would break there, or hold what was on when it was compiled."""
    monkeypatch.setattr(trace, "NSIGHT", listening)
    monkeypatch.setattr(trace, "nvtx", None)

    @traced("outer")
    def double(x):
        with trace_range("inner", x):
            return 2 * x

    compiled = torch.compile(double, fullgraph=True, backend="eager")
    assert torch.equal(compiled(torch.ones(3, 3)), torch.full((3, 3), 2.0))
