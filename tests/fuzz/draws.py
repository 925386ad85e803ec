# SPDX-License-Identifier: Apache-2.0
"""Cases of the ops that draw and gather: anchors, pixels, pairs of cells."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from pipa_fast import ops
from pipa_fast.reference import gather_pixels as gather_reference
from pipa_fast.reference import overlap_pairs as overlap_reference
from pipa_fast.reference import sample_anchors as sample_reference
from tests.fuzz import strategies as s
from tests.fuzz.compare import refused
from tests.fuzz.contrast import BAD

op_seeds = st.one_of(
    st.integers(-(2**70), 2**70), st.sampled_from(("none", "each", "each int32", "expanded"))
)
NO_SEED = ("7", 1.5, None, torch.zeros(()), torch.zeros(5, 5, dtype=torch.int64))
sides = st.integers(0, 12)


def seed_of(seed: int | str, images: int) -> int | Tensor:
    """Return an op's seed: an int, a tensor [], or one of a number for each image."""
    if isinstance(seed, int):
        return seed
    if seed == "none":
        return torch.tensor(-5)
    if seed == "expanded":
        return torch.tensor(2**62).expand(images)
    each = torch.arange(images) * 2**40
    return each if seed == "each" else each.to(torch.int32)


@dataclass(frozen=True, kw_only=True)
class Anchors:
    """A call of sample_anchors."""

    images: int = 1
    size: tuple[int, int] = (3, 4)
    num_anchors: int = 16
    max_per_class: int = 100
    hard_fraction: float = 0.5
    ignore_index: int = 255
    labels: str = "few"
    predictions: str = "few"
    label_dtype: str = "int64"
    prediction_dtype: str = "int64"
    layouts: tuple[str, str] = ("contiguous",) * 2
    same: bool = False
    op_seed: int | str = 0
    wrong: Any = None
    seed: int = 0

    def arguments(self) -> dict[str, Any]:
        """Return the op's arguments, before anything is made wrong."""
        shape, g = (self.images, *self.size), s.dice(self.seed)
        labels, predictions = (
            s.laid_out(s.labels_of(shape, kind, dtype, self.ignore_index, g), layout)
            for kind, dtype, layout in (
                (self.labels, self.label_dtype, self.layouts[0]),
                (self.predictions, self.prediction_dtype, self.layouts[1]),
            )
        )
        return {
            "labels": labels,
            "predictions": labels if self.same else predictions,
            "seed": seed_of(self.op_seed, self.images),
            "num_anchors": self.num_anchors,
            "max_per_class": self.max_per_class,
            "hard_fraction": self.hard_fraction,
            "ignore_index": self.ignore_index,
        }


anchor_cases = st.builds(
    Anchors,
    images=st.integers(0, 3),
    size=st.tuples(sides, sides),
    num_anchors=st.one_of(st.integers(0, 40), st.just(300)),
    max_per_class=st.one_of(st.integers(0, 8), st.just(2**40)),
    hard_fraction=st.sampled_from((0, 0.0, 0.29, 0.5, 1.0, 1)),
    ignore_index=st.sampled_from(s.IGNORED),
    labels=st.sampled_from(s.LABEL_KINDS),
    predictions=st.sampled_from(s.LABEL_KINDS),
    label_dtype=s.integers,
    prediction_dtype=s.integers,
    layouts=st.tuples(s.layouts, s.layouts),
    same=st.booleans(),
    op_seed=op_seeds,
    wrong=s.maybe(
        [
            *s.wrong_tensors(
                labels={**s.NO_INTEGERS, "an axis more": s.NO_SHAPE["an axis more"]},
                predictions=s.NO_INTEGERS | s.NO_SHAPE | s.ELSEWHERE,
            ),
            *s.wrong_values(
                seed=NO_SEED,
                num_anchors=s.NO_COUNT,
                max_per_class=s.NO_COUNT,
                hard_fraction=s.NO_SHARE,
                ignore_index=s.NO_INDEX,
            ),
        ]
    ),
    seed=s.seeds,
)


def check_anchors(case: Anchors) -> None:
    """As many of each class as the reference says, each once; or refused by name."""
    given = case.arguments()
    if case.wrong is not None:
        name, changed = s.made_wrong(given, case.wrong)
        return refused(name, lambda: ops.sample_anchors(**changed))
    labels = given["labels"].to(torch.int64)
    if not ((labels >= -(2**30)) & (labels < 2**30)).all():
        return refused("labels", lambda: ops.sample_anchors(**given))
    index, drawn = ops.sample_anchors(**given)
    assert index.shape == drawn.shape == (case.num_anchors,)
    assert index.dtype == drawn.dtype == torch.int64
    real = drawn != case.ignore_index
    assert not index[~real].any()
    index, drawn = index[real], drawn[real]
    assert len(set(index.tolist())) == len(index)
    assert torch.equal(labels.flatten()[index], drawn)
    sizes = sample_reference.group_sizes(
        labels,
        given["predictions"].to(torch.int64),
        num_anchors=case.num_anchors,
        max_per_class=case.max_per_class,
        hard_fraction=case.hard_fraction,
        ignore_index=case.ignore_index,
    )
    hard = given["predictions"].to(torch.int64).flatten()[index] != drawn
    image = index // max(1, labels[0].numel() if len(labels) else 1)
    found = Counter(zip(image.tolist(), drawn.tolist(), hard.tolist(), strict=True))
    assert found == Counter({key: n for key, n in sizes.items() if n})
    return None


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """A call of gather_pixels."""

    shape: tuple[int, int, int, int] = (1, 4, 3, 3)
    count: int = 5
    dtype: str = "float32"
    layout: str = "contiguous"
    index_dtype: str = "int64"
    index_layout: str = "contiguous"
    normalize: bool = True
    outside: int | None = None
    differentiated: bool = True
    bad: str = ""
    place: int = 0
    wrong: Any = None
    seed: int = 0

    def arguments(self) -> dict[str, Any]:
        """Return the op's arguments, before anything is made wrong."""
        g = s.dice(self.seed)
        features = torch.randn(self.shape, generator=g, dtype=torch.float64)
        features = features.to(s.dtype_of(self.dtype))
        if self.bad and features.numel():
            features.view(-1)[self.place % features.numel()] = BAD[self.bad]
        info = torch.iinfo(s.dtype_of(self.index_dtype))
        pixels = min(features[:, :1].numel(), info.max + 1)
        index = torch.randint(-1, max(pixels, 1), (self.count,), generator=g).clamp(min=info.min)
        if self.outside is not None and self.count and info.min <= self.outside <= info.max:
            index[self.place % self.count] = self.outside
        return {
            "features": s.laid_out(features, self.layout),
            "index": s.laid_out(index.to(s.dtype_of(self.index_dtype)), self.index_layout),
            "normalize": self.normalize,
        }


pixel_cases = st.builds(
    Pixels,
    shape=st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)),
    count=st.integers(0, 20),
    dtype=s.floats,
    layout=s.layouts,
    index_dtype=s.integers,
    index_layout=s.layouts,
    normalize=st.booleans(),
    outside=s.maybe((-2, 200, 5000, 2**31, *s.INT64)),
    differentiated=st.booleans(),
    bad=st.sampled_from((*[""] * 9, *BAD)),
    place=s.seeds,
    wrong=s.maybe(
        s.wrong_tensors(
            features={**s.NO_FLOATS, "an axis more": s.NO_SHAPE["an axis more"]},
            index={**s.NO_INTEGERS, **s.ELSEWHERE, "an axis more": s.NO_SHAPE["an axis more"]},
        )
    ),
    seed=s.seeds,
)


def check_gather_pixels(case: Pixels) -> None:
    """The rows and gradient of the reference, or refused by name."""
    given = case.arguments()
    if case.wrong is not None:
        name, changed = s.made_wrong(given, case.wrong)
        return refused(name, lambda: ops.gather_pixels(**changed))
    features, index = given["features"].detach(), given["index"].to(torch.int64)
    if features.numel() and (index >= features[:, 0].numel()).any():
        return refused("index", lambda: ops.gather_pixels(**given))
    features.requires_grad_(case.differentiated)
    rows = ops.gather_pixels(**given | {"features": features})
    assert rows.shape == (case.count, case.shape[1]) and rows.dtype == features.dtype
    assert rows.requires_grad == case.differentiated
    if not features.numel():
        assert not rows.any()
        return None
    exact = features.detach().double().requires_grad_()
    expected = gather_reference.gather_pixels(exact, index, case.normalize)
    fine = expected.isfinite().all(1)
    assert not rows[index < 0].any()
    assert not rows[~fine & (index >= 0)].isfinite().all(1).any(), "hidden"
    eps = torch.finfo(features.dtype).eps
    torch.testing.assert_close(rows[fine].double(), expected[fine], rtol=4 * eps, atol=4 * eps)
    if case.differentiated and not case.bad:
        weight = torch.randn(rows.shape, generator=s.dice(case.seed + 1), dtype=torch.float64)
        (gradient,) = torch.autograd.grad((rows.double() * weight).sum(), features)
        (truth,) = torch.autograd.grad((expected * weight).sum(), exact)
        # parts that cancel are as large as a weight over a norm
        norm = exact.detach().norm(dim=1).clamp(max=1).min() if case.normalize else 1
        size = float(torch.cat((weight.abs().flatten(), weight.new_zeros(1))).max() / norm)
        torch.testing.assert_close(gradient.double(), truth, rtol=20 * eps, atol=20 * eps * size)
    return None


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """A call of overlap_pairs."""

    images: int = 1
    cells: tuple[int, int] = (3, 4)
    stride: int = 2
    zoom: int = 1
    far: int = 0
    box_dtype: str = "int64"
    layout: str = "contiguous"
    crooked: int = 0
    num_pairs: int = 10
    op_seed: int | str = 0
    wrong: Any = None
    seed: int = 0

    def arguments(self) -> dict[str, Any]:
        """Return the op's arguments, before anything is made wrong."""
        g = s.dice(self.seed)
        cell = self.stride * self.zoom
        reach = max(self.cells) + 1
        corner = torch.randint(-reach, reach, (self.images, 2, 2), generator=g) * cell
        corner += self.far
        corners = torch.cat((corner, corner + cell * torch.tensor(self.cells)), dim=2)
        if self.crooked and self.images:
            corners.view(-1)[self.seed % corners.numel()] += self.crooked
        info = torch.iinfo(s.dtype_of(self.box_dtype))
        if corners.numel() and (corners.min() < info.min or corners.max() > min(info.max, 2**62)):
            corners = corners * 0  # which has no cells
        return {
            "boxes": s.laid_out(corners.to(s.dtype_of(self.box_dtype)), self.layout),
            "flips": torch.rand(self.images, 2, generator=g) < 0.5,
            "crop_size": tuple(n * self.stride for n in self.cells),
            "stride": self.stride,
            "num_pairs": self.num_pairs,
            "seed": seed_of(self.op_seed, self.images),
        }


s.CHANGES["numbers"] = lambda t: t.to(torch.uint8)
s.CHANGES["elsewhere, bool"] = lambda t: torch.zeros(t.shape, dtype=torch.bool, device="meta")
pair_cases = st.builds(
    Pairs,
    images=st.integers(0, 3),
    cells=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    stride=st.integers(1, 4),
    zoom=st.integers(1, 3),
    far=st.sampled_from((0, 0, 60, 2**40, -(2**50))),
    box_dtype=s.integers,
    layout=s.layouts,
    crooked=st.sampled_from((0, 0, 0, 1, -1, 2**45)),
    num_pairs=st.one_of(st.integers(0, 30), st.just(500)),
    op_seed=op_seeds,
    wrong=s.maybe(
        [
            *s.wrong_tensors(
                boxes=s.NO_INTEGERS, flips={**s.NO_SHAPE, "numbers": s.CHANGES["numbers"]}
            ),
            *s.wrong_values(
                crop_size=(0, -2, None, "ab", (2,), (2, 2, 2), (2.0, 2)),
                stride=(0, *s.NO_COUNT),
                num_pairs=s.NO_COUNT,
                seed=NO_SEED,
            ),
        ]
    ),
    seed=s.seeds,
)


def check_overlap_pairs(case: Pairs) -> None:
    """Pairs of the reference, each once, as many as there may be; or refused by name."""
    given = case.arguments()
    if case.wrong is not None:
        name, changed = s.made_wrong(given, case.wrong)
        return refused(name, lambda: ops.overlap_pairs(**changed))
    boxes = given["boxes"].to(torch.int64)
    size = boxes[:, :, 2:] - boxes[:, :, :2]
    count = torch.tensor(case.cells)
    cell = size[:, 0] // count
    fine = (size[:, 0] == size[:, 1]).all() and (cell >= 1).all() and (cell * count == size[:, 0])
    apart = (boxes[:, 1, :2] - boxes[:, 0, :2]) % cell.clamp(min=1)
    if case.images and not (torch.as_tensor(fine).all() and (apart == 0).all()):
        return refused("boxes", lambda: ops.overlap_pairs(**given))
    pairs = torch.stack(ops.overlap_pairs(**given))
    assert pairs.shape == (2, case.num_pairs) and pairs.dtype == torch.int64
    real = pairs[0] >= 0
    assert (pairs[:, ~real] == -1).all()
    found = [tuple(pair) for pair in pairs[:, real].T.tolist()]
    every = overlap_reference.all_pairs(
        boxes, given["flips"], crop_size=given["crop_size"], stride=case.stride
    )
    known = {pair for image in every for pair in image}
    assert len(set(found)) == len(found) == min(case.num_pairs, len(known))
    assert set(found) <= known
    return None
