# SPDX-License-Identifier: Apache-2.0
"""Cases of the ops on maps: upsampled cross-entropy, pseudo labels, downscaled labels."""

import contextlib
import os
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

from pipa_fast import ops
from pipa_fast.reference import downscale_labels as downscale_reference
from pipa_fast.reference import upsampled_cross_entropy as cross_entropy_reference
from tests.fuzz import strategies as s
from tests.fuzz.compare import EPS, ROUNDED, refused, ways
from tests.fuzz.contrast import BAD

sides = st.one_of(st.integers(1, 4), st.integers(1, 20), st.sampled_from((1, 8, 16, 17, 33)))
sizes = st.tuples(sides, sides)
full_sides = st.one_of(sides, st.sampled_from((0, 40)))
SCALES = (1.0, 1.0, 1e-3, 30.0, 1e4)
# as in the contrasts, but -inf is a logit that a class may well have
bad = st.sampled_from((*[""] * 9, *BAD))


@dataclass(frozen=True, kw_only=True)
class Maps:
    """A call of upsampled_cross_entropy, or of pseudo_labels, which takes the same logits."""

    images: int = 1
    classes: int = 3
    small: tuple[int, int] = (3, 4)
    full: tuple[int, int] = (7, 9)
    dtype: str = "float32"
    scale: float = 1.0
    layout: str = "contiguous"
    label_dtype: str = "int64"
    label_layout: str = "contiguous"
    ignored: float = 0.2
    ignore_index: int = 255
    outside: int | None = None
    weights: str = "none"
    average: str = "valid"
    threshold: float = 0.9
    way: str = "cpu"
    differentiated: bool = True
    bad: str = ""
    place: int = 0
    wrong: Any = None
    seed: int = 0

    def logits(self) -> Tensor:
        """Return the logits [B, K, h, w]."""
        g = s.dice(self.seed)
        logits = self.scale * 3 * torch.randn(self.images, self.classes, *self.small, generator=g)
        if self.bad and logits.numel():
            logits.view(-1)[self.place % logits.numel()] = BAD[self.bad]
        return s.laid_out(logits.to(s.dtype_of(self.dtype)), self.layout)

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of upsampled_cross_entropy, before anything is made wrong."""
        shape, g = (self.images, *self.full), s.dice(self.seed + 1)
        labels = torch.randint(0, self.classes, shape, generator=g)
        gone = torch.rand(shape, generator=g) < self.ignored
        info = torch.iinfo(s.dtype_of(self.label_dtype))
        if info.min <= self.ignore_index <= info.max:
            labels = labels.masked_fill(gone, self.ignore_index)
        outside = self.outside
        if outside is not None and labels.numel() and info.min <= outside <= info.max:
            labels.view(-1)[self.place % labels.numel()] = outside
        labels = labels.to(s.dtype_of(self.label_dtype))
        return {
            "logits": self.logits(),
            "labels": s.laid_out(labels, self.label_layout),
            "weights": s.weights_of(shape, self.weights, g),
            "ignore_index": self.ignore_index,
            "average": self.average,
        }


LOGITS_WRONG: s.Changes = {
    **s.NO_FLOATS,
    "an axis less": lambda t: t[:, 0],
    "no classes": lambda t: t.new_zeros(1, 0, 2, 2),
    "no rows": lambda t: t.new_zeros(1, 2, 0, 2),
}
s.CHANGES.update(LOGITS_WRONG)
CROSS_ENTROPY_WRONG = [
    *s.wrong_tensors(
        logits=LOGITS_WRONG,
        labels=s.NO_INTEGERS | s.NO_SHAPE | s.ELSEWHERE,
        weights=s.NO_WEIGHTS | s.NO_SHAPE | s.ELSEWHERE,
    ),
    *s.wrong_values(ignore_index=s.NO_INDEX, average=("none", None, 3)),
]
common = {
    "images": st.integers(0, 3),
    "classes": st.one_of(st.integers(1, 6), st.sampled_from((19, 40))),
    "small": sizes,
    "dtype": s.floats,
    "scale": st.sampled_from(SCALES),
    "layout": s.layouts,
    "bad": bad,
    "place": s.seeds,
    "seed": s.seeds,
}
cross_entropies = st.builds(
    Maps,
    **common,
    full=st.tuples(full_sides, full_sides),
    label_dtype=s.integers,
    label_layout=s.layouts,
    ignored=st.sampled_from((0.0, 0.2, 0.9, 1.0)),
    ignore_index=st.sampled_from(s.IGNORED),
    outside=s.maybe((-1, 40, 200, 2**31, 2**33, *s.INT64)),
    weights=st.sampled_from(s.WEIGHT_KINDS),
    average=st.sampled_from(("valid", "all")),
    way=st.sampled_from(ways("upsampled_cross_entropy")),
    differentiated=st.booleans(),
    wrong=s.maybe(CROSS_ENTROPY_WRONG),
)


def by_way(way: str) -> Any:
    """Have the ops that take no backend computed by one."""
    if os.environ.get("PIPA_FAST_BACKEND", "") == way:
        return contextlib.nullcontext()  # threads that patched it would undo each other's
    return mock.patch.dict(os.environ, PIPA_FAST_BACKEND=way)


def check_cross_entropy(case: Maps) -> None:
    """Right, or refused by name; logits that only ignored pixels see have no say."""
    given = case.arguments()
    if case.wrong is not None:
        name, changed = s.made_wrong(given, case.wrong)
        return refused(name, lambda: ops.upsampled_cross_entropy(**changed))
    logits, labels = given["logits"], given["labels"].to(torch.int64)
    valid = labels != case.ignore_index
    native = case.dtype != "float64"
    if case.way == "cpu" and not native:
        with by_way("cpu"):
            return refused("backend", lambda: ops.upsampled_cross_entropy(**given))
    way = case.way if native else ""
    if not ((labels >= 0) & (labels < case.classes))[valid].all():
        if way in ("", "cpu", "reference"):
            with by_way(way):
                refused("labels", lambda: ops.upsampled_cross_entropy(**given))
        return None
    loss, slope = run_cross_entropy(given, way, case.differentiated)
    assert loss.shape == () and loss.dtype == s.wide_of(case.dtype)
    counts = valid if given["weights"] is None else valid & (given["weights"] != 0)
    sees, may_see = seen(~logits.isfinite(), case.full)
    if (sees & counts).any():
        # A class that cannot be, at -inf, leaves the others a finite loss.
        told = not loss.isfinite() or case.bad == "-inf"
        assert told, f"hidden: {float(loss)}"
    if (may_see & valid).any():
        return None
    clean = logits.detach().double().nan_to_num(0, 0, 0)
    rounding = max(4e-6, 4 * EPS * float(clean.abs().max())) if clean.numel() else 4e-6
    truth, true_slope = oracle(clean, labels, given)
    error = abs(float(loss) - float(truth))
    assert error <= rounding * (1 + abs(float(truth))), (float(loss), float(truth))
    if slope is None:
        return None
    assert slope.shape == logits.shape and slope.isfinite().all()
    step, smallest = ROUNDED[slope.dtype]
    if slope.numel():
        allowed = (50 * rounding + step) * true_slope.abs().max() + 1e-7 + smallest
        worst = (slope.double() - true_slope).abs().max()
        assert worst <= allowed, (float(worst), float(allowed))


def seen(wrong: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return which pixels [B, H, W] see a wrong cell, and which may, with a weight of 0.

    Vectors of neighbouring pixels are computed with the same cells of a row.
    """
    cells = wrong.any(1, keepdim=True).double()
    if not cells.numel() or 0 in size:
        nothing = torch.zeros(wrong.shape[0], *size, dtype=torch.bool)
        return nothing, nothing
    near = F.max_pool2d(cells, 3, 1, 1).amax(3, keepdim=True).expand(cells.shape)
    sees, may_see = (
        F.interpolate(t, size, mode="bilinear", align_corners=False)[:, 0] for t in (cells, near)
    )
    return sees > 1e-3, may_see > 0


def oracle(logits: Tensor, labels: Tensor, given: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return loss and gradient in float64, by autograd."""
    logits.requires_grad_()
    if not labels.numel():
        return torch.zeros(()), torch.zeros_like(logits)
    weights = given["weights"]
    loss = cross_entropy_reference.upsampled_cross_entropy(
        logits,
        labels,
        weights=None if weights is None else weights.double(),
        ignore_index=given["ignore_index"],
        average=given["average"],
    )
    return loss.detach(), torch.autograd.grad(loss, logits)[0]


def run_cross_entropy(
    given: dict[str, Any], way: str, differentiated: bool
) -> tuple[Tensor, Tensor | None]:
    """Return loss and gradient, by a backend, by an instruction set, or by what "" chooses."""
    logits, weights = given["logits"].detach(), given["weights"]
    if way not in ("", "cpu", "reference"):
        loss, slope = torch.ops.pipa_fast_cpu.upsampled_cross_entropy_forward(
            logits.contiguous(),
            given["labels"].to(torch.int64).contiguous(),
            None if weights is None else weights.to(torch.float32).contiguous(),
            given["ignore_index"],
            given["average"] == "all",
            differentiated,
            way,
        )
        return loss, slope.to(logits.dtype) if differentiated else None
    logits.requires_grad_(differentiated)
    with by_way(way):
        loss = ops.upsampled_cross_entropy(**given | {"logits": logits})
    assert loss.requires_grad == differentiated
    if not differentiated:
        return loss, None
    (slope,) = torch.autograd.grad(loss, logits)
    assert slope.dtype == logits.dtype
    return loss.detach(), slope


pseudo_cases = st.builds(
    Maps,
    **common,
    full=sizes,
    threshold=st.sampled_from((0.0, 0.5, 0.9, 1.0, 1)),
    way=st.sampled_from(ways("pseudo_labels")),
    wrong=s.maybe(
        [
            *s.wrong_tensors(logits=LOGITS_WRONG),
            *s.wrong_values(
                size=((0, 3), (3, -1), (3,), (3, 3, 3), 3, None, (2.0, 3), "ab", (True, 3)),
                threshold=s.NO_SHARE,
            ),
        ]
    ),
)


def check_pseudo_labels(case: Maps) -> None:
    """Right, or refused by name; what is not a number stays where it is."""
    given = {"logits": case.logits(), "size": case.full, "threshold": case.threshold}
    if case.wrong is not None:
        name, changed = s.made_wrong(given, case.wrong)
        return refused(name, lambda: ops.pseudo_labels(**changed))
    native = case.dtype != "float64"
    if case.way == "cpu" and not native:
        with by_way("cpu"):
            return refused("backend", lambda: ops.pseudo_labels(**given))
    logits = given["logits"]
    if native and case.way not in ("cpu", "reference"):
        found = torch.ops.pipa_fast_cpu.pseudo_labels(
            logits.contiguous(), *case.full, float(case.threshold), case.way
        )
    else:
        with by_way(case.way if native else ""):
            found = ops.pseudo_labels(**given)
    labels, confidence, share = found
    assert labels.shape == confidence.shape == (case.images, *case.full) and share.shape == ()
    assert labels.dtype == torch.int64 and confidence.dtype == s.wide_of(case.dtype)
    assert ((labels >= 0) & (labels < case.classes)).all()
    if not case.images:
        return None
    sure = (confidence >= confidence.new_tensor(case.threshold)).to(confidence.dtype).mean()
    torch.testing.assert_close(share, sure)
    # A logit of -inf, which 10,000 in float16 may round to as well, is a class of probability 0.
    sees, _ = seen(~(logits.isfinite() | logits.isneginf()), case.full)
    _, may_see = seen(~logits.isfinite(), case.full)
    assert not confidence[sees].isfinite().any(), "hidden"
    clean = logits.double().nan_to_num(0, 0, 0)
    odds = F.interpolate(clean, case.full, mode="bilinear", align_corners=False).softmax(1)
    fine, rounding = ~may_see, max(4e-6, 4 * EPS * float(clean.abs().max()))
    error = (confidence.double() - odds.max(1).values)[fine].abs()
    assert (error <= rounding).all(), float(error.max())
    two = odds.topk(min(2, case.classes), dim=1).values
    clear = fine & (two[:, 0] - two[:, -1] > 2 * rounding)
    assert torch.equal(labels[clear], odds.argmax(1)[clear])
    return None


@dataclass(frozen=True, kw_only=True)
class Cells:
    """A call of downscale_labels."""

    images: int = 1
    cells: tuple[int, int] = (2, 2)
    stride: int = 2
    num_classes: int = 3
    min_ratio: float = 0.75
    ignore_index: int = 255
    labels: str = "few"
    label_dtype: str = "int64"
    layout: str = "contiguous"
    wrong: Any = None
    seed: int = 0

    def arguments(self) -> dict[str, Any]:
        """Return the op's arguments, before anything is made wrong."""
        shape = (self.images, *(n * self.stride for n in self.cells))
        labels = s.labels_of(
            shape, self.labels, self.label_dtype, self.ignore_index, s.dice(self.seed)
        )
        return {
            "labels": s.laid_out(labels, self.layout),
            "stride": self.stride,
            "num_classes": self.num_classes,
            "min_ratio": self.min_ratio,
            "ignore_index": self.ignore_index,
        }


s.CHANGES["a row more"] = lambda t: torch.cat((t, t.new_zeros(t.shape[0], 1, t.shape[2])), 1)
cell_cases = st.builds(
    Cells,
    images=st.integers(0, 3),
    cells=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    stride=st.integers(1, 5),
    num_classes=st.integers(1, 6),
    min_ratio=st.sampled_from((0, 0.0, 0.34, 0.5, 0.75, 1.0, 1)),
    ignore_index=st.sampled_from(s.IGNORED),
    labels=st.sampled_from(s.LABEL_KINDS),
    label_dtype=s.integers,
    layout=s.layouts,
    wrong=s.maybe(
        [
            *s.wrong_tensors(labels={**s.NO_INTEGERS, "an axis more": s.NO_SHAPE["an axis more"]}),
            *s.wrong_values(
                stride=(0, *s.NO_COUNT),
                num_classes=(0, *s.NO_COUNT),
                min_ratio=s.NO_SHARE,
                ignore_index=s.NO_INDEX,
            ),
        ]
    ),
    seed=s.seeds,
)


def check_downscale_labels(case: Cells) -> None:
    """As one cell after another is counted, or refused by name."""
    given = case.arguments()
    if case.wrong is not None:
        name, changed = s.made_wrong(given, case.wrong)
        return refused(name, lambda: ops.downscale_labels(**changed))
    found = ops.downscale_labels(**given)
    assert found.dtype == torch.int64 and found.shape == (case.images, *case.cells)
    if not found.numel() or range(case.num_classes) == range(case.ignore_index, 1):
        return None  # the only class is the ignored one
    known = given | {"labels": given["labels"].to(torch.int64)}
    assert torch.equal(found, downscale_reference.downscale_labels(**known))
    return None
