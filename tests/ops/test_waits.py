# SPDX-License-Identifier: Apache-2.0
"""No op, loss or step waits for the device: none reads a value, none makes a shape of values."""

import contextlib
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F

from bench.dispatch import Dispatched
from pipa_fast import ops
from pipa_fast.bank import FeatureBank
from pipa_fast.losses import PatchConsistencyLoss, PixelContrastLoss
from pipa_fast.ops.backends import OPS
from pipa_fast.training import distributed
from pipa_fast.training.config import load, merge, read_recipe
from pipa_fast.training.trainer import Trainer


class InsideToo(Dispatched):
    """Looks into our own operators: a registered op is one call from outside."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        namespace, name = func.name().split("::")
        if namespace != "pipa_fast":
            return super().__torch_dispatch__(func, types, args, kwargs)
        self.operators[name] += 1
        op = name.removesuffix("_backward")
        *settings, backend = args
        table = import_module(f"pipa_fast.ops.{op}").BACKENDS
        row = next(row for row in table if row.name == backend)
        with self:
            return (row.forward if name == op else row.backward)(*settings)


SEED = torch.tensor(3)


def labels(*shape):
    drawn = torch.randint(0, 5, shape)
    return drawn.masked_fill(torch.rand(shape) < 0.1, 255)


def rows(n=40):
    return F.normalize(torch.randn(n, 8), dim=1).requires_grad_()


def boxes():
    corner = torch.tensor([[[0, 0], [8, 4]], [[4, 8], [0, 0]]])
    return torch.cat((corner, corner + 32), dim=2), torch.tensor([[True, False], [False, False]])


# op: name of a backend -> what a training step computes with it; None where there is no choice
CALLS = {
    "pixel_contrast": lambda backend: [
        ops.pixel_contrast(
            rows(),
            labels(40),
            weights=torch.rand(40),
            denominator=form,
            temperature=temperature,
            backend=backend,
        )
        for form in ("negatives", "all")
        for temperature in ((0.1, 0.01) if backend == "reference" else (0.1,))
    ],
    "patch_consistency": lambda backend: [
        ops.patch_consistency(
            rows(),
            rows().detach(),
            rows(30).detach(),
            labels(40),
            labels(30),
            weights=torch.rand(40),
            backend=backend,
        )
    ],
    "sample_anchors": lambda _: ops.sample_anchors(
        labels(2, 8, 9), labels(2, 8, 9), seed=SEED, num_anchors=30
    ),
    "gather_pixels": lambda _: [
        ops.gather_pixels(torch.randn(2, 8, 3, 4).requires_grad_(), torch.arange(-1, 24))
    ],
    "overlap_pairs": lambda _: ops.overlap_pairs(
        *boxes(), crop_size=32, stride=4, num_pairs=20, seed=SEED
    ),
    "downscale_labels": lambda _: ops.downscale_labels(labels(2, 8, 8), stride=4, num_classes=5),
    "upsampled_cross_entropy": lambda _: [
        ops.upsampled_cross_entropy(
            torch.randn(2, 5, 4, 4).requires_grad_(),
            labels(2, 16, 16).clamp(max=4),
            weights=torch.rand(2, 16, 16),
            average=average,
        )
        for average in ("valid", "all")
    ],
    "pseudo_labels": lambda _: ops.pseudo_labels(
        torch.randn(2, 5, 4, 4), size=(16, 16), threshold=0.5
    ),
}


def backwards(outputs):
    for output in outputs:
        if output.requires_grad:
            output.sum().backward()


@pytest.mark.parametrize(
    ("op", "backend"), [(op, b) for op in OPS for b in ops.backends(op, "cpu")]
)
def test_op_waits_for_nothing(op, backend, monkeypatch):
    monkeypatch.setenv("PIPA_FAST_BACKEND", backend)  # also where the caller has no choice
    with InsideToo() as seen:
        backwards(CALLS[op](backend))
    assert seen.operators.total() > 1
    assert not +seen.waits


@pytest.mark.parametrize("num_anchors", [40, "all"])
def test_pixel_contrast_loss_waits_for_nothing(num_anchors):
    loss = PixelContrastLoss(num_anchors=num_anchors)
    embeddings = torch.randn(2, 8, 6, 5).requires_grad_()
    given = labels(2, 24, 20), labels(2, 6, 5)
    with InsideToo() as seen:
        backwards([loss(embeddings, *given, weights=torch.rand(2, 24, 20))])
    assert seen.operators["pixel_contrast_backward"] and not +seen.waits


def test_patch_consistency_loss_waits_for_nothing():
    loss = PatchConsistencyLoss(bank=FeatureBank(64, 8), num_pairs=30)
    views = [torch.randn(2, 8, 8, 8).requires_grad_() for _ in range(2)]
    sure = [torch.rand(2, 32, 32) for _ in range(2)]
    given = (*views, labels(2, 32, 32), labels(2, 32, 32), *sure, *boxes())
    with InsideToo() as seen:
        backwards([loss(*given)])
    assert seen.operators["patch_consistency_backward"] and not +seen.waits


# Every term there is, on a network of two scales.
EVERYTHING = {
    "precision": "fp32",
    "data": {"crop": [32, 64], "patch_crop": [32, 32], "batch_size": 2, "rare_class": False},
    "adaptation": {
        "mixed": {"threshold": 0.05},
        "masked": {"weight": 1.0, "block": 8},
        "features": {"weight": 0.1, "classes": list(range(19)), "min_ratio": 0.2},
        "patch": {"confidence_threshold": 0.0, "bank_confidence": 0.0, "start": 0, "ramp": 0},
    },
    "model": {"hrda": {"enabled": True, "detail": [16, 16]}},
    "optimizer": {"clip": 1.0},
}


@contextlib.contextmanager
def waits_refused():
    """Whatever makes the host wait for a GPU is an error in here."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def a_trainer(device, *words):
    config = load(merge(read_recipe("streets_pipa"), EVERYTHING), ["--device", device, *words])
    return Trainer(config, distributed.start(device))


def test_training_step_waits_for_nothing():
    trainer = a_trainer("cpu")
    batch = next(trainer._batches())
    with InsideToo() as seen:
        losses = trainer._train_step(batch)
    assert len(losses) == 7 and seen.operators.total() > 1000
    assert not +seen.waits


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_training_step_waits_for_nothing_on_a_gpu(precision):
    trainer = a_trainer("cuda", "--precision", precision)
    batch = next(trainer._batches()).to("cuda")
    trainer._train_step(batch)  # compiles and autotunes
    with waits_refused():
        trainer._train_step(batch)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x[x > 0],
        lambda x: x.clone().__setitem__(x > 0, torch.zeros(int((x > 0).sum()))),
        lambda x: x.nonzero(),
        lambda x: x.unique(),
        lambda x: x.masked_select(x > 0),
        lambda x: x.long().abs().bincount(),
        lambda x: x.repeat_interleave(torch.arange(6)),
        lambda x: F.one_hot(x.long().abs()),
        lambda x: torch.equal(x, x),
    ],
)
def test_a_wait_is_seen(call):
    with InsideToo() as seen:
        call(torch.randn(6))
    assert +seen.waits
