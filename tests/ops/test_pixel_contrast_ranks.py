# SPDX-License-Identifier: Apache-2.0
"""Sums over pairs with rows of other ranks, put together as ranks do, against the whole."""

import dataclasses
import sys

import pytest
import torch
import torch.nn.functional as F

from pipa_fast import ops
from pipa_fast.ops import _pixel_contrast_cpu as cpu
from pipa_fast.ops import _pixel_contrast_cuda as cuda
from pipa_fast.ops import _pixel_contrast_ranks as ranks
from pipa_fast.reference.pixel_contrast import Rows, Settings, anchor_weights

op = sys.modules["pipa_fast.ops.pixel_contrast"]
IGNORE = 255
# How many rows each rank holds. Blocks have 96 rows on the CPU, tiles 16 to 64 in Triton, 16 to 128
# in CUDA C++.
CUTS = [(5, 9), (0, 7), (7, 0), (1, 1, 1), (20, 37), (70, 130), (97, 3, 200)]
FEW = 5  # of them, for the interpreter and the emulator
LAYOUTS = {
    "skewed": lambda n: (torch.rand(n) ** 3 * 9).long(),
    "own classes": lambda n: torch.arange(n) // max(1, n // 3),
    "singletons": lambda n: torch.randperm(n),
    "one class": lambda n: torch.full((n,), 7),
    "ignored": lambda n: torch.full((n,), IGNORE),
    "some ignored": lambda n: torch.where(torch.rand(n) < 0.3, IGNORE, torch.arange(n) % 3),
    "far apart": lambda n: torch.tensor([-(2**63), 0, 2**63 - 1])[torch.arange(n) % 3],
}


CPUS = ["portable", "avx2", "avx512", "portable_bf16", "avx512_bf16"]
CHIPS = ["sm_80", "sm_90a"]
GPUS = [pytest.param(name, marks=pytest.mark.slow) for name in ("triton", *CHIPS)]


@pytest.fixture(params=["reference", *CPUS, *GPUS])
def pairs(request, monkeypatch):
    if request.param == "reference":
        return op._REFERENCE_PAIRS
    if request.param == "triton":
        return interpreted(monkeypatch)
    if request.param in CHIPS:
        return emulated(request, monkeypatch, request.param)
    if not pytest.importorskip("pipa_fast._host").cpu_features()[request.param]:
        pytest.skip(f"this CPU has no {request.param}")
    return cpu.pairs(request.param)


def interpreted(monkeypatch):
    """Triton's, with few programs to sort, and tiles of which a few rows make several."""
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("kernels are not interpreted where a GPU is")
    from pipa_fast.kernels import _pixel_contrast_ranks, pixel_contrast
    from pipa_fast.kernels._launch import SHARED_MEMORY, Tile, TileRow

    monkeypatch.setattr(pixel_contrast, "SORT_TILE", Tile(128, 0, 4, 1))
    rows = tuple(
        TileRow(chip, 512, width, Tile(16, 16, 4, 2), "")
        for chip in SHARED_MEMORY
        for width in (2, 4)
    )
    for table in ("MIXED", "GRADIENT"):
        monkeypatch.setattr(_pixel_contrast_ranks, table, rows)
    return op._TRITON_PAIRS


def emulated(request, monkeypatch, chip):
    """Those of CUDA C++."""
    monkeypatch.setattr(cuda, "KERNELS", request.getfixturevalue("emulator").of(chip))
    return op._CUDA_PAIRS


@dataclasses.dataclass
class Team:
    """Stands in for ranks.Team where there is no process group: every rank's rows are here."""

    parts: list[Rows]
    rank: int
    size: int

    @property
    def own(self):
        return self.parts[self.rank]

    def others(self):
        return (rows for k, rows in enumerate(self.parts) if k != self.rank and len(rows.labels))


def contrast(monkeypatch, pairs, x, labels, weights, settings, cuts):
    """Loss and gradient of rows that are cut into ranks."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    share, positives = anchor_weights(labels, weights, settings.ignore_index, dtype)
    w = share / positives.clamp(min=1)
    parts = [Rows(*p) for p in zip(*(t.split(cuts) for t in (x, labels, w)), strict=True)]
    monkeypatch.setattr(ranks, "sum_over_ranks", lambda value, group: value)

    def run(step, *saved):
        monkeypatch.setattr(ranks, "Team", lambda *_: Team(team, k, len(cuts)))
        return step(pairs, *saved, *rest)

    found, team = [], parts
    for k in range(len(cuts)):
        rest = (*parts[k][:2], None, settings, "a group")
        found.append(run(ranks.forward))
    team = [p._replace(z=z, u=u) for p, (_, z, u) in zip(parts, found, strict=True)]
    gradients = []
    for k in range(len(cuts)):
        rest = (*parts[k][:2], None, *found[k][1:], settings, "a group")
        gradients.append(run(ranks.backward, torch.ones(())) / len(cuts))
    return sum(loss for loss, _, _ in found), torch.cat(gradients)


def whole(x, labels, weights, settings):
    """The same by one rank in float64, whose formulas have tests of their own."""
    x = x.double().requires_grad_()
    loss = ops.pixel_contrast(
        x,
        labels,
        weights=weights,
        temperature=settings.temperature,
        denominator=settings.denominator,
        ignore_index=settings.ignore_index,
        backend="reference",
    )
    (gradient,) = torch.autograd.grad(loss, x)
    return loss.detach(), gradient


def check(monkeypatch, pairs, x, labels, weights, settings, cuts, tolerance):
    loss, gradient = contrast(monkeypatch, pairs, x, labels, weights, settings, cuts)
    expected, expected_gradient = whole(x, labels, weights, settings)
    torch.testing.assert_close(loss.double(), expected, rtol=tolerance, atol=tolerance)
    # With "all", terms of 1 / temperature each may cancel to nothing.
    floor = tolerance * bool((labels != settings.ignore_index).any())
    assert (gradient.double() - expected_gradient).norm() <= (
        20 * tolerance * expected_gradient.norm() + floor
    )


@pytest.mark.parametrize("form", ["negatives", "all"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_parts_are_the_whole(monkeypatch, pairs, layout, form):
    slow = pairs in (op._TRITON_PAIRS, op._CUDA_PAIRS)
    for cuts in CUTS[: FEW if slow else None]:
        n = sum(cuts)
        x, labels = F.normalize(torch.randn(n, 11), dim=1), LAYOUTS[layout](n)
        settings = Settings(0.1, form, IGNORE)
        for weights in (None, torch.rand(n)):
            check(monkeypatch, pairs, x, labels, weights, settings, list(cuts), 1e-6)


@pytest.mark.parametrize("form", ["negatives", "all"])
def test_triton_in_short(monkeypatch, form):
    x, labels = F.normalize(torch.randn(37, 11), dim=1), LAYOUTS["some ignored"](37)
    pairs, settings = interpreted(monkeypatch), Settings(0.1, form, IGNORE)
    check(monkeypatch, pairs, x, labels, torch.rand(37), settings, [20, 17], 1e-6)


@pytest.mark.parametrize("form", ["negatives", "all"])
@pytest.mark.parametrize(
    ("chip", "dtype", "tolerance"),
    [
        ("sm_80", torch.float32, 1e-6),
        ("sm_80", torch.bfloat16, 1e-3),
        ("sm_90a", torch.bfloat16, 1e-3),
        ("sm_90a", torch.float16, 1e-3),
    ],
)
def test_cuda_in_short(monkeypatch, request, chip, dtype, tolerance, form):
    """A class of the first rank alone, one of the second, and a rank without rows."""
    x = F.normalize(torch.randn(190, 11), dim=1).to(dtype)
    labels = torch.where(torch.rand(190) < 0.2, IGNORE, torch.arange(190) % 3)
    labels[:20], labels[180:] = 7, 8
    pairs, settings = emulated(request, monkeypatch, chip), Settings(0.1, form, IGNORE)
    check(monkeypatch, pairs, x, labels, torch.rand(190), settings, [140, 0, 50], tolerance)


@pytest.mark.parametrize("form", ["negatives", "all"])
@pytest.mark.parametrize("dim", [1, 8, 130, 512])
def test_any_depth(monkeypatch, pairs, dim, form):
    x, labels = F.normalize(torch.randn(40, dim), dim=1), torch.arange(40) % 3
    check(monkeypatch, pairs, x, labels, None, Settings(0.2, form, IGNORE), [15, 25], 1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(monkeypatch, pairs, dtype):
    if pairs is op._TRITON_PAIRS and dtype == torch.bfloat16:
        pytest.skip("the interpreter computes no bfloat16")
    x, labels = F.normalize(torch.randn(61, 24), dim=1).to(dtype), torch.arange(61) % 5
    for form in ("negatives", "all"):
        check(monkeypatch, pairs, x, labels, None, Settings(0.1, form, IGNORE), [30, 31], 1e-3)


def test_small_gradients_in_float16(monkeypatch, pairs):
    """Entries of G are weights over numbers of positives: float16 would keep nothing of 1e-8."""
    x = F.normalize(torch.randn(60, 16), dim=1).half()
    labels = torch.arange(60) % 2
    weights = torch.full((60,), 1e-5)
    weights[0] = 1
    settings = Settings(0.1, "negatives", IGNORE)
    check(monkeypatch, pairs, x, labels, weights, settings, [30, 30], 1e-3)


def test_float64_of_the_reference(monkeypatch):
    x, labels = F.normalize(torch.randn(60, 9).double(), dim=1), torch.arange(60) % 4
    for form in ("negatives", "all"):
        for temperature in (0.1, 0.01):  # at the second, Z itself would be 0
            settings = Settings(temperature, form, IGNORE)
            check(monkeypatch, op._REFERENCE_PAIRS, x, labels, None, settings, [20, 0, 40], 1e-12)


@pytest.mark.parametrize("name", ["cpu", "triton", *CHIPS])
def test_rows_that_are_not_finite(monkeypatch, request, name):
    if name == "cpu":
        pytest.importorskip("pipa_fast._C")
        pairs = cpu.pairs()
    elif name == "triton":
        pairs = interpreted(monkeypatch)
    else:
        pairs = emulated(request, monkeypatch, name)
    x, labels = F.normalize(torch.randn(40, 8), dim=1), torch.arange(40) % 4
    x[33] = torch.nan  # of the other rank
    settings = Settings(0.1, "negatives", IGNORE)
    loss, _ = contrast(monkeypatch, pairs, x, labels, None, settings, [20, 20])
    assert loss.isnan()


@pytest.mark.parametrize("text", ["256MB", "1e9", "-1"])
def test_a_limit_that_is_no_number_of_bytes(monkeypatch, text):
    monkeypatch.setenv("PIPA_FAST_GATHER_BYTES", text)
    with pytest.raises(ValueError, match=f"PIPA_FAST_GATHER_BYTES must be .*; got '{text}'"):
        ranks.gather_bytes()
