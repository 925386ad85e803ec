# SPDX-License-Identifier: Apache-2.0
"""Cases of pixel contrast and patch consistency, and what has to be true of each."""

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from pipa_fast import ops
from tests.fuzz import strategies as s
from tests.fuzz.compare import assert_gradient, assert_value, refused, ways

BAD = {"nan": torch.nan, "inf": torch.inf, "-inf": -torch.inf}
ROWS = ("random", "random", "near", "zero")
bad = st.sampled_from((*[""] * 9, *BAD))


@dataclass(frozen=True, kw_only=True)
class Pixel:
    """A call of pixel_contrast."""

    n: int = 8
    d: int = 4
    dtype: str = "float32"
    rows: str = "random"
    layout: str = "contiguous"
    labels: str = "few"
    label_dtype: str = "int64"
    label_layout: str = "contiguous"
    ignore_index: int = 255
    weights: str = "none"
    temperature: float = 0.1
    denominator: str = "negatives"
    way: str = "cpu"
    differentiated: bool = True
    bad: str = ""
    place: int = 0
    wrong: Any = None
    seed: int = 0

    def arguments(self) -> dict[str, Any]:
        """Return the op's arguments, before anything is made wrong."""
        g = s.dice(self.seed)
        features = s.unit_rows(self.n, self.d, self.dtype, self.rows, g)
        if self.bad and self.n:
            features[self.place % self.n, self.place % self.d] = BAD[self.bad]
        labels = s.labels_of((self.n,), self.labels, self.label_dtype, self.ignore_index, g)
        return {
            "features": s.laid_out(features, self.layout),
            "labels": s.laid_out(labels, self.label_layout),
            "weights": s.weights_of((self.n,), self.weights, g),
            "temperature": self.temperature,
            "denominator": self.denominator,
            "ignore_index": self.ignore_index,
        }


PIXEL_WRONG = [
    *s.wrong_tensors(
        features={**s.NO_FLOATS, "an axis more": lambda t: t[..., None], **s.NO_COLUMNS},
        labels=s.NO_INTEGERS | s.NO_SHAPE | s.ELSEWHERE,
        weights=s.NO_WEIGHTS | s.NO_SHAPE | s.ELSEWHERE,
    ),
    *s.wrong_values(
        temperature=s.NO_TEMPERATURE,
        ignore_index=s.NO_INDEX,
        denominator=("both", None, 1),
        backend=("gpu", 3, "triton", "cuda"),
        group=("no group", 3),
    ),
]
pixels = st.builds(
    Pixel,
    n=s.counts,
    d=s.widths,
    dtype=s.floats,
    rows=st.sampled_from(ROWS),
    layout=s.layouts,
    labels=st.sampled_from(s.LABEL_KINDS),
    label_dtype=s.integers,
    label_layout=s.layouts,
    ignore_index=st.sampled_from(s.IGNORED),
    weights=st.sampled_from(s.WEIGHT_KINDS),
    temperature=st.sampled_from(s.TEMPERATURES),
    denominator=st.sampled_from(("negatives", "all")),
    way=st.sampled_from(ways("pixel_contrast")),
    differentiated=st.booleans(),
    bad=bad,
    place=s.seeds,
    wrong=s.maybe(PIXEL_WRONG),
    seed=s.seeds,
)


def check_pixel(case: Pixel) -> None:
    """Right, or refused by name; whatever is ignored has no say."""
    given = case.arguments()
    if case.wrong is not None:
        name, changed = s.made_wrong(given, case.wrong)
        return refused(name, lambda: ops.pixel_contrast(**changed))
    way = case.way
    native = case.dtype != "float64" and case.temperature >= 0.025
    if way == "cpu" and not native:
        return refused("backend", lambda: ops.pixel_contrast(**given, backend="cpu"))
    features, labels, weights = given["features"], given["labels"].to(torch.int64), given["weights"]
    live = labels != case.ignore_index
    counted = live if weights is None else live & (weights != 0)
    same = (labels[:, None] == labels) & live & live[:, None]
    anchors = counted & (same.sum(1) > 1)
    loss, gradient = run_pixel(given, way if native else "", case.differentiated)
    assert loss.shape == () and loss.dtype == s.wide_of(case.dtype)
    if not features[live].isfinite().all():
        others = case.denominator == "all" or len(labels[live].unique()) > 1
        return assert_told(loss, bool(anchors.any()) and others)
    clean = features.double().masked_fill(~live[:, None], 0)
    truth = run_pixel(given | {"features": clean}, "reference", True)
    assert_value(loss, truth[0], 1 / case.temperature)
    if gradient is not None:
        share = s.largest_share(weights, anchors)
        assert gradient.dtype == features.dtype
        assert_gradient(gradient, truth[1], 1 / case.temperature, share)
        assert not gradient[~live].any()


def assert_told(loss: Tensor, matters: bool) -> None:
    """A loss that something infinite goes into is not finite; 0 where it does not count."""
    if matters:
        assert not loss.isfinite(), f"hidden: {float(loss)}"
    else:
        assert loss == 0 or not loss.isfinite(), float(loss)


def run_pixel(given: dict[str, Any], way: str, differentiated: bool) -> tuple[Tensor, Any]:
    """Return loss and gradient, by a backend, by an instruction set, or by what "" chooses."""
    features = given["features"].detach()
    if way not in ("", "cpu", "reference"):
        return _native_pixel(given, features, way)
    features.requires_grad_(differentiated)
    loss = ops.pixel_contrast(**given | {"features": features}, backend=way or None)
    assert loss.requires_grad == differentiated
    if not differentiated:
        return loss, None
    (gradient,) = torch.autograd.grad(loss, features)
    return loss.detach(), gradient


def _native_pixel(given: dict[str, Any], features: Tensor, isa: str) -> tuple[Tensor, Tensor]:
    native, weights = torch.ops.pipa_fast_cpu, given["weights"]
    arguments = (
        features.contiguous(),
        given["labels"].to(torch.int64).contiguous(),
        None if weights is None else weights.to(torch.float32).contiguous(),
    )
    options = (given["temperature"], given["denominator"] == "all", given["ignore_index"], isa)
    loss, z, u = native.pixel_contrast_forward(*arguments, *options)
    one = torch.ones(())
    return loss, native.pixel_contrast_backward(one, *arguments, z, u, *options)


@dataclass(frozen=True, kw_only=True)
class Patch:
    """A call of patch_consistency."""

    n: int = 8
    m: int = 9
    d: int = 4
    dtype: str = "float32"
    rows: str = "random"
    same: str = ""
    layouts: tuple[str, str, str] = ("contiguous",) * 3
    labels: tuple[str, str] = ("few", "few")
    label_dtype: str = "int64"
    label_layout: str = "contiguous"
    weights: str = "none"
    temperature: float = 0.1
    way: str = "cpu"
    differentiated: bool = True
    bad: str = ""
    bad_in: str = "bank"
    place: int = 0
    wrong: Any = None
    seed: int = 0

    def arguments(self) -> dict[str, Any]:
        """Return the op's arguments, before anything is made wrong."""
        g = s.dice(self.seed)
        given: dict[str, Any] = {}
        for name, count in (("anchors", self.n), ("positives", self.n), ("bank", self.m)):
            given[name] = s.unit_rows(count, self.d, self.dtype, self.rows, g)
        if self.bad and len(given[self.bad_in]):
            row = self.place % len(given[self.bad_in])
            given[self.bad_in][row, self.place % self.d] = BAD[self.bad]
        for name, layout in zip(("anchors", "positives", "bank"), self.layouts, strict=True):
            given[name] = s.laid_out(given[name], layout)
        for name, count, kind in zip(
            ("anchor_labels", "bank_labels"), (self.n, self.m), self.labels, strict=True
        ):
            labels = s.labels_of((count,), kind, self.label_dtype, -1, g)
            given[name] = s.laid_out(labels, self.label_layout)
        for name in self.same.split():  # one tensor is several arguments
            given[name] = given["anchors"]
            if name == "bank":
                given["bank_labels"] = given["anchor_labels"]
        weights = s.weights_of((self.n,), self.weights, g)
        return given | {"weights": weights, "temperature": self.temperature}


ROW_WRONG = s.NO_FLOATS | s.NO_COLUMNS | s.ELSEWHERE | s.ANOTHER_DTYPE | s.DIFFERENTIATED
PATCH_WRONG = [
    *s.wrong_tensors(
        anchors=s.NO_FLOATS | s.NO_COLUMNS,
        positives=ROW_WRONG | s.NO_SHAPE,
        bank=ROW_WRONG,
        anchor_labels=s.NO_INTEGERS | s.NO_SHAPE | s.ELSEWHERE,
        bank_labels=s.NO_INTEGERS | s.NO_SHAPE | s.ELSEWHERE,
        weights=s.NO_WEIGHTS | s.NO_SHAPE | s.ELSEWHERE,
    ),
    *s.wrong_values(
        temperature=s.NO_TEMPERATURE, backend=("gpu", 3, "triton"), group=("no group", 3)
    ),
]
patches = st.builds(
    Patch,
    n=s.counts,
    m=st.one_of(s.counts, st.sampled_from((63, 64, 65, 300))),
    d=s.widths,
    dtype=s.floats,
    rows=st.sampled_from(ROWS),
    same=st.sampled_from(("", "", "", "positives", "bank", "positives bank")),
    layouts=st.tuples(s.layouts, s.layouts, s.layouts),
    labels=st.tuples(*[st.sampled_from(s.LABEL_KINDS)] * 2),
    label_dtype=s.integers,
    label_layout=s.layouts,
    weights=st.sampled_from(s.WEIGHT_KINDS),
    temperature=st.sampled_from(s.TEMPERATURES),
    way=st.sampled_from(ways("patch_consistency")),
    differentiated=st.booleans(),
    bad=bad,
    bad_in=st.sampled_from(("anchors", "positives", "bank")),
    place=s.seeds,
    wrong=s.maybe(PATCH_WRONG),
    seed=s.seeds,
)


def check_patch(case: Patch) -> None:
    """Right, or refused by name; whatever has no weight or label has no say."""
    given = case.arguments()
    if case.wrong is not None:
        name, changed = s.made_wrong(given, case.wrong)
        return refused(name, lambda: ops.patch_consistency(**changed))
    native = case.dtype != "float64" and case.temperature >= 0.025
    if case.way == "cpu" and not native:
        return refused("backend", lambda: ops.patch_consistency(**given, backend="cpu"))
    labels, bank_labels = (given[name].to(torch.int64) for name in ("anchor_labels", "bank_labels"))
    weights = given["weights"]
    counted = labels >= 0 if weights is None else (labels >= 0) & (weights != 0)
    negative = (labels[:, None] != bank_labels) & (bank_labels >= 0) & counted[:, None]
    loss, gradient = run_patch(given, case.way if native else "", case.differentiated)
    assert loss.shape == () and loss.dtype == s.wide_of(case.dtype)
    bad = {name: ~given[name].isfinite().all(1) for name in ("anchors", "positives", "bank")}
    bad_row = counted & (bad["anchors"] | bad["positives"])
    if bad_row.any() or bad["bank"][bank_labels >= 0].any():
        matters = (negative & (bad_row[:, None] | bad["bank"])).any()
        return None if not matters else assert_told(loss, True)
    kept = {"anchors": counted, "positives": counted, "bank": bank_labels >= 0}
    clean = {k: given[k].detach().double().masked_fill(~v[:, None], 0) for k, v in kept.items()}
    truth = run_patch(given | clean, "reference", True)
    assert_value(loss, truth[0], 1 / case.temperature)
    if gradient is not None:
        share = s.largest_share(weights, counted)
        assert_gradient(gradient, truth[1], 1 / case.temperature, share)
        assert not gradient[~counted].any()


def run_patch(given: dict[str, Any], way: str, differentiated: bool) -> tuple[Tensor, Any]:
    """Return loss and gradient, by a backend, by an instruction set, or by what "" chooses."""
    anchors = given["anchors"].detach()
    if way not in ("", "cpu", "reference"):
        rows = [t.contiguous() for t in (anchors, given["positives"], given["bank"])]
        labels = [given[k].to(torch.int64).contiguous() for k in ("anchor_labels", "bank_labels")]
        weights = given["weights"]
        weights = None if weights is None else weights.to(torch.float32).contiguous()
        native = torch.ops.pipa_fast_cpu.patch_consistency_forward
        loss, slope = native(*rows, *labels, weights, given["temperature"], way)
        return loss, slope.to(anchors.dtype)
    anchors.requires_grad_(differentiated)
    loss = ops.patch_consistency(**given | {"anchors": anchors}, backend=way or None)
    assert loss.requires_grad == differentiated
    if not differentiated:
        return loss, None
    (gradient,) = torch.autograd.grad(loss, anchors)
    assert gradient.dtype == anchors.dtype
    return loss.detach(), gradient
