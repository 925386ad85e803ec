# SPDX-License-Identifier: Apache-2.0
"""Steps of two ranks with a GPU each, of which one is there; test_pretend.py runs this file."""

from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from pipa_fast.training import distributed, trainer
from tests.ops.test_waits import a_trainer, waits_refused
from tests.pretend.test_device import NEEDS_IT

pytestmark = NEEDS_IT


@pytest.fixture
def pair(monkeypatch):
    """Rank 0 of two: a group in which it hears itself as the other."""
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    start, wrap = dist.init_process_group, trainer.data_parallel
    asked = []

    def init(backend, **_):
        asked.append(backend)
        start("fake", rank=0, world_size=2, store=FakeStore())

    def reduced(_, bucket):
        done = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    def parallel(student, world):
        made = wrap(student, world)
        made.register_comm_hook(None, reduced)  # that of the group gives DDP nothing back
        made.logger = mock.MagicMock()  # it times by CUDA's events
        return made

    monkeypatch.setattr(dist, "init_process_group", init)
    monkeypatch.setattr(trainer, "data_parallel", parallel)
    yield
    distributed.end()
    assert asked == ["cpu:gloo,cuda:nccl"]


@pytest.mark.usefixtures("pair", "few_scenes")
@pytest.mark.parametrize("num_anchors", ["40", "all"])
def test_steps_of_two_ranks_wait_for_nothing(num_anchors):
    words = ["--precision", "bf16", "--adaptation.pixel.num_anchors", num_anchors]
    made = a_trainer("cuda", *words)
    batch = next(made._batches())
    made._train_step(batch)
    made._train_step(batch)  # DDP sorts its buckets anew
    with waits_refused():
        losses = made._train_step(batch)
    assert len(losses) == 7 and all(loss.isfinite() for loss in losses.values())
