# SPDX-License-Identifier: Apache-2.0
"""Cases of the modules: the feature bank against a list, and the losses against their ops."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

from pipa_fast import ops
from pipa_fast.bank import FeatureBank
from pipa_fast.losses import PatchConsistencyLoss, PixelContrastLoss, resize_nearest
from tests.fuzz import strategies as s
from tests.fuzz.compare import refused

BANK_DTYPES = ("float32", "float64", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class Pushes:
    """A FeatureBank, and how much is pushed to it."""

    capacity: int = 4
    dim: int = 3
    counts: tuple[int, ...] = (2, 3)
    dtype: str = "float32"
    layout: str = "contiguous"
    label_dtype: str = "int64"
    labels: str = "negative"
    wrong: Any = None
    seed: int = 0


pushes = st.builds(
    Pushes,
    capacity=st.integers(1, 9),
    dim=st.integers(1, 5),
    counts=st.lists(st.integers(0, 12), max_size=5).map(tuple),
    dtype=st.sampled_from(BANK_DTYPES),
    layout=s.layouts,
    label_dtype=s.integers,
    labels=st.sampled_from(s.LABEL_KINDS),
    wrong=s.maybe(
        s.wrong_tensors(
            keys={**s.NO_FLOATS, **s.NO_COLUMNS, "longer": s.NO_SHAPE["longer"]},
            labels={**s.NO_INTEGERS, **s.ELSEWHERE, "a scalar": s.NO_SHAPE["a scalar"]},
        )
    ),
    seed=s.seeds,
)


def check_bank(case: Pushes) -> None:
    """The bank holds the last keys whose labels are not negative, as a list of them would."""
    bank, g = FeatureBank(case.capacity, case.dim), s.dice(case.seed)
    kept: list[tuple[list[float], int]] = []
    slots: dict[int, tuple[list[float], int]] = {}
    for count in case.counts:
        keys = torch.randn(count, case.dim, generator=g).to(s.dtype_of(case.dtype))
        labels = s.labels_of((count,), case.labels, case.label_dtype, -1, g)
        keys, labels = s.laid_out(keys, case.layout), s.laid_out(labels, case.layout)
        if case.wrong is not None:
            name, changed = s.made_wrong({"keys": keys, "labels": labels}, case.wrong)
            before = bank.state_dict()
            refused(name, lambda changed=changed: bank.push(**changed))
            assert all(torch.equal(before[k], v) for k, v in bank.state_dict().items())
        bank.push(keys, labels)
        rows = zip(keys.float().tolist(), labels.to(torch.int64).tolist(), strict=True)
        for row, label in rows:
            if label >= 0:
                slots[len(kept) % case.capacity] = (row, label)
                kept.append((row, label))
    for slot in range(case.capacity):
        row, label = slots.get(slot, ([0.0] * case.dim, -1))
        assert bank.labels[slot] == label and bank.keys[slot].tolist() == row


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """A call of PixelContrastLoss or PatchConsistencyLoss."""

    images: int = 2
    dim: int = 4
    size: tuple[int, int] = (3, 4)
    full: tuple[int, int] = (6, 8)
    dtype: str = "float32"
    layout: str = "contiguous"
    num_anchors: int | str = "all"
    label_dtype: str = "int64"
    predicted: bool = False
    weighted: bool = False
    denominator: str = "negatives"
    bank: int = 0
    training: bool = True
    wrong: Any = None
    seed: int = 0

    def labels(self, generator: torch.Generator) -> Tensor:
        """Return labels [B, H, W], some ignored."""
        shape = (self.images, *self.full)
        return s.labels_of(shape, "some ignored", self.label_dtype, 255, generator)


sides = st.integers(0, 6)
common = {
    "images": st.integers(0, 3),
    "dim": st.integers(1, 9),
    "size": st.tuples(sides, sides),
    "full": st.tuples(st.integers(1, 12), st.integers(1, 12)),
    "dtype": s.floats,
    "layout": s.layouts,
    "label_dtype": s.integers,
    "seed": s.seeds,
}
MAP_WRONG = {**s.NO_INTEGERS, **s.ELSEWHERE, "an axis more": s.NO_SHAPE["an axis more"]}
EMBEDDING_WRONG = {**s.NO_FLOATS, "an axis more": s.NO_SHAPE["an axis more"]}
pixel_losses = st.builds(
    Embeddings,
    **common,
    num_anchors=st.one_of(st.just("all"), st.integers(1, 60)),
    predicted=st.booleans(),
    weighted=st.booleans(),
    denominator=st.sampled_from(("negatives", "all")),
    wrong=s.maybe(
        [
            *s.wrong_tensors(embeddings=EMBEDDING_WRONG, labels=MAP_WRONG),
            *s.wrong_values(seed=("7", 1.5)),
        ]
    ),
)


def check_pixel_loss(case: Embeddings) -> None:
    """The op on the anchors that the ops draw, or refused by name."""
    g = s.dice(case.seed)
    embeddings = torch.randn(case.images, case.dim, *case.size, generator=g)
    embeddings = s.laid_out(embeddings.to(s.dtype_of(case.dtype)), case.layout)
    labels = case.labels(g)
    predictions = case.labels(g) if case.predicted else None
    weights = torch.rand(labels.shape, generator=g) if case.weighted else None
    given = {"embeddings": embeddings, "labels": labels, "predictions": predictions}
    given |= {"weights": weights, "seed": 3}
    loss_of = PixelContrastLoss(
        num_anchors=case.num_anchors, denominator=case.denominator, max_per_class=5
    )
    if case.wrong is not None:
        name, changed = s.made_wrong(given, case.wrong)
        if name == "seed" and case.num_anchors == "all":
            return None  # nothing is drawn
        return refused(name, lambda: loss_of(**changed))
    embeddings.requires_grad_()
    loss = loss_of(**given)
    (gradient,) = torch.autograd.grad(loss, embeddings)
    assert loss.isfinite() and gradient.isfinite().all() and gradient.dtype == embeddings.dtype
    small = resize_nearest(labels.to(torch.int64), case.size)
    rows = embeddings.detach().double().permute(0, 2, 3, 1).reshape(-1, case.dim)
    rows, targets = F.normalize(rows, dim=1), small.flatten()
    weights = None if weights is None else resize_nearest(weights, case.size).flatten()
    if case.num_anchors != "all":
        hard = small if predictions is None else resize_nearest(predictions, case.size)
        index, targets = ops.sample_anchors(
            small, hard, seed=3, num_anchors=case.num_anchors, max_per_class=5
        )
        rows = rows[index] if len(rows) else rows.new_zeros(len(index), case.dim)
        if weights is not None:
            weights = weights[index] if len(weights) else torch.zeros(len(index))
    truth = ops.pixel_contrast(
        rows.to(embeddings.dtype).double(), targets, weights=weights, denominator=case.denominator
    )
    torch.testing.assert_close(loss.double(), truth, rtol=2e-2, atol=2e-2)
    if case.dtype in ("float32", "float64"):
        torch.testing.assert_close(loss.double(), truth, rtol=2e-5, atol=1e-5)
    return None


patch_losses = st.builds(
    Embeddings,
    **common,
    bank=st.integers(0, 20),
    training=st.booleans(),
    weighted=st.booleans(),
    wrong=s.maybe(
        [
            *s.wrong_tensors(
                view_a=EMBEDDING_WRONG,
                view_b={"an axis more": s.NO_SHAPE["an axis more"], **s.NO_FLOATS},
                labels_a=MAP_WRONG,
                labels_b=MAP_WRONG,
                confidence_a={**s.NO_FLOATS, **s.ELSEWHERE},
                confidence_b={**s.NO_FLOATS, **s.ELSEWHERE},
                boxes={**s.NO_INTEGERS, **s.NO_SHAPE, **s.ELSEWHERE},
                flips=s.NO_SHAPE,
                weights={**s.NO_TENSOR, **s.NO_SHAPE, **s.ELSEWHERE, **s.DIFFERENTIATED},
            ),
            *s.wrong_values(seed=("7", 1.5)),
        ]
    ),
)


def check_patch_loss(case: Embeddings) -> None:
    """The same in float64 as in the views' dtype, or refused by name."""
    g = s.dice(case.seed)
    shape = (case.images, case.dim, *case.size)
    views = [torch.randn(shape, generator=g).to(s.dtype_of(case.dtype)) for _ in range(2)]
    height, width = (max(1, side) for side in case.size)
    corners = torch.randint(0, 3, (case.images, 2, 2), generator=g)
    boxes = torch.cat((corners, corners + torch.tensor([height, width])), dim=2)
    given = {
        "view_a": s.laid_out(views[0], case.layout),
        "view_b": s.laid_out(views[1], case.layout),
        "labels_a": case.labels(g),
        "labels_b": case.labels(g),
        "confidence_a": torch.rand(case.images, *case.full, generator=g),
        "confidence_b": torch.rand(case.images, *case.full, generator=g),
        "boxes": boxes,
        "flips": torch.rand(case.images, 2, generator=g) < 0.5,
        "weights": torch.rand(case.images, generator=g) if case.weighted else None,
        "seed": 3,
    }

    def made() -> PatchConsistencyLoss:
        bank = FeatureBank(case.bank, case.dim) if case.bank else None
        return PatchConsistencyLoss(confidence_threshold=0.3, bank=bank).train(case.training)

    if case.wrong is not None:
        if case.wrong[0] == "weights" and not case.weighted:
            given["weights"] = torch.ones(case.images)
        name, changed = s.made_wrong(given, case.wrong)
        name = "view_a" if 0 in case.size else name
        return refused(name, lambda: made()(**changed))
    if 0 in case.size:
        return refused("view_a", lambda: made()(**given))
    given["view_a"].requires_grad_()
    loss = made()(**given)
    (gradient,) = torch.autograd.grad(loss, given["view_a"])
    assert loss.isfinite() and gradient.isfinite().all()
    wide = {k: given[k].detach().double() for k in ("view_a", "view_b")}
    truth = made()(**given | wide)
    exact = case.dtype in ("float32", "float64")
    torch.testing.assert_close(
        loss.detach().double(),
        truth,
        rtol=2e-5 if exact else 5e-2,
        atol=2e-5 if exact else 5e-2,
    )
    return None
