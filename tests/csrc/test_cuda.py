# SPDX-License-Identifier: Apache-2.0
"""The CUDA C++ kernels without a GPU: run on a CPU instruction by instruction."""

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

from pipa_fast.ops import _patch_consistency_cuda as patch
from pipa_fast.ops import _pixel_contrast_cuda as pixel
from pipa_fast.ops.backends import Problem, cuda_why_not
from pipa_fast.reference import patch_consistency as reference_patch
from pipa_fast.reference import pixel_contrast as reference_pixel
from tests.csrc.two_ranks import errors, two_ranks
from tests.equations import one_against_all

# dtype or precision: relative errors of loss and gradient, given the same rounded rows
BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
BOUNDS = {BF16: (1e-6, 4e-3), F16: (1e-6, 5e-4), F32: (1e-6, 1e-6), "tf32": (2e-5, 1e-3)}


@pytest.fixture(autouse=True)
def emulated(kernels, monkeypatch):
    monkeypatch.setattr(pixel, "KERNELS", kernels)
    monkeypatch.setattr(patch, "KERNELS", kernels)


def precision(kind):
    """The dtype of the rows; float32's products are set to TF32 for "tf32"."""
    torch.backends.cuda.matmul.fp32_precision = "tf32" if kind == "tf32" else "ieee"
    return F32 if kind == "tf32" else kind


@pytest.fixture(autouse=True)
def put_precision_back():
    before = torch.backends.cuda.matmul.fp32_precision
    yield
    torch.backends.cuda.matmul.fp32_precision = before


def unit_rows(n, d, dtype):
    return F.normalize(torch.randn(n, d), dim=1).to(dtype)


def check(kind, value, expected, gradient, expected_gradient):
    loss_bound, gradient_bound = BOUNDS[kind]
    assert torch.isfinite(gradient).all()
    torch.testing.assert_close(value.double(), expected, rtol=loss_bound, atol=1e-7)
    error = (gradient.double() - expected_gradient).norm()
    # Where all cancels, an ulp or two are left: not all exponentials are computed in one way.
    floor = 1e-9 if expected_gradient.any() else 5e-6
    assert error <= gradient_bound * expected_gradient.norm() + floor


def pixel_case(n, d, kind, form, classes=5, weighted=False, temperature=0.1):
    torch.manual_seed(n + d)
    x = unit_rows(n, d, precision(kind))
    labels = torch.randint(0, classes, (n,)).masked_fill(torch.rand(n) < 0.1, 255)
    return x, labels, torch.rand(n) if weighted else None, temperature, form, 255


def both_ways(module, x, labels, weights, *settings):
    loss, z, u = module.forward(x, labels, weights, *settings)
    grad = torch.ones((), dtype=loss.dtype)
    return loss, module.backward(grad, x, labels, weights, z, u, *settings)


@pytest.mark.parametrize("form", ["negatives", "all"])
@pytest.mark.parametrize(
    ("n", "d", "kind", "more"),
    [
        (1, 8, BF16, {}),
        (2, 8, F16, {"classes": 1}),
        (129, 8, F32, {"classes": 1}),
        (130, 32, "tf32", {}),
        (150, 90, BF16, {"classes": 40}),  # padded to 96 columns, which a kernel of 128 takes
        (150, 256, F16, {"weighted": True}),
        (70, 512, BF16, {}),
        (40, 512, F32, {}),
        (70, 256, "tf32", {}),
        (100, 128, F32, {"weighted": True}),
        (300, 64, BF16, {"temperature": 0.03}),
        (300, 24, BF16, {"classes": 1000}),
        (700, 64, BF16, {"classes": 1}),  # two tiles of a class for one program
        (270, 512, BF16, {"classes": 40}),  # Hopper: five blocks, in clusters of two
        pytest.param(520, 72, F16, {"classes": 40}, marks=pytest.mark.slow),
    ],
)
def test_pixel_contrast(n, d, kind, more, form):
    x, labels, weights, *settings = pixel_case(n, d, kind, form, **more)
    wide = None if weights is None else weights.double()
    expected = both_ways(reference_pixel, x.double(), labels, wide, *settings)
    loss, gradient = both_ways(pixel, x, labels, weights, *settings)
    check(kind, loss, expected[0], gradient, expected[1])
    assert gradient.dtype == x.dtype and gradient.shape == x.shape


@pytest.mark.parametrize("temperature", [0.03, 0.1, 0.2])
def test_small_losses_keep_their_digits(temperature):
    """Of classes on opposite sides, 1 + Z/e is 1 when rounded, or a few units of rounding more."""
    torch.manual_seed(0)
    labels = torch.arange(200) % 2
    x = F.normalize(torch.full((8,), 1.0) + 0.2 * torch.randn(200, 8), dim=1)
    x = torch.where(labels[:, None] == 0, x, -x)
    settings = None, temperature, "negatives", 255
    loss, gradient = both_ways(pixel, x, labels, *settings)
    expected = both_ways(reference_pixel, x.double(), labels, *settings)
    assert expected[0] < 0.05
    torch.testing.assert_close(loss.double(), expected[0], rtol=5e-6, atol=0)
    error = (gradient.double() - expected[1]).norm()
    assert error <= 1e-5 * expected[1].norm()


def test_the_form_all_meets_no_positive(kernels, monkeypatch):
    """Of which it needs the sum of the class alone."""
    monkeypatch.setattr(kernels, "pixel_contrast_positives", None)
    pixel.forward(*pixel_case(20, 8, F16, "all"))
    settings = reference_pixel.Settings(0.1, "all", 255)
    (rows, _), (keys, _) = two_ranks(unit_rows(20, 8, F32), torch.arange(20) % 3, 9, settings)
    pixel.positives(rows, keys, settings)


@pytest.mark.slow
def test_pixel_contrast_in_several_launches():
    """More shifts than one launch has slots for."""
    case = pixel_case(2400, 8, BF16, "negatives", classes=19)
    expected = both_ways(reference_pixel, case[0].double(), *case[1:])
    check(BF16, *(v for pair in zip(both_ways(pixel, *case), expected, strict=True) for v in pair))


def test_nothing_to_contrast():
    x, labels = unit_rows(50, 8, F32), torch.full((50,), 255)
    for given in (x, x[:0]):
        loss, gradient = both_ways(pixel, given, labels[: len(given)], None, 0.1, "negatives", 255)
        assert loss == 0 and gradient.shape == given.shape and (gradient == 0).all()


@pytest.mark.parametrize("label", [-(2**63), 2**63 - 1, 0])
def test_any_label_may_be_ignored(label):
    x, labels, *_ = pixel_case(60, 16, F32, "all")
    settings = None, 0.1, "all"
    expected = both_ways(reference_pixel, x.double(), labels, *settings, 255)
    marked = labels.where(labels != 255, label)
    marked = marked.where(labels == 255, labels + 1)
    loss, gradient = both_ways(pixel, x, marked, *settings, label)
    check(F32, loss, expected[0], gradient, expected[1])


def test_rows_that_take_no_part_may_be_anything():
    """They share tiles with others, and their weights of zero would not keep a NaN out."""
    x, labels, weights, *settings = pixel_case(200, 128, BF16, "negatives")
    expected = both_ways(pixel, x, labels, weights, *settings)
    x[labels == 255] = torch.nan
    loss, gradient = both_ways(pixel, x, labels, weights, *settings)
    assert torch.equal(loss, expected[0]) and torch.equal(gradient, expected[1])

    a, p, k = (unit_rows(rows, 128, F16) for rows in (90, 90, 150))
    labels, weights = (torch.randint(-1, 4, (90,)), torch.randint(-1, 4, (150,))), torch.rand(90)
    weights[::7] = 0
    expected = patch.forward(a, p, k, *labels, weights, 0.1)
    none = (labels[0] == -1) | (weights == 0)
    a[none], p[none], k[labels[1] == -1] = torch.nan, torch.inf, torch.nan
    loss, slope = patch.forward(a, p, k, *labels, weights, 0.1)
    assert torch.equal(loss, expected[0]) and torch.equal(slope, expected[1])


@pytest.mark.parametrize("form", ["negatives", "all"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30])
def test_weights_of_rows_that_are_no_anchors_may_be_anything(value, form):
    labels, weights = torch.arange(60) % 3, torch.rand(60)
    labels[7], labels[50] = 255, 9  # who is alone in its class is no anchor either
    weights[7] = weights[50] = 0
    for dtype in (F32, F16):
        x = unit_rows(60, 16, dtype)
        expected = both_ways(pixel, x, labels, weights, 0.1, form, 255)
        for row in (7, 50):
            strange = weights.index_fill(0, torch.tensor(row), value)
            found = both_ways(pixel, x, labels, strange, 0.1, form, 255)
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    rows, labels = [unit_rows(60, 16, F32) for _ in range(3)], labels.where(labels != 255, -1)
    expected = patch.forward(*rows, labels, labels, weights, 0.1)
    strange = weights.index_fill(0, torch.tensor(7), value)
    found = patch.forward(*rows, labels, labels, strange, 0.1)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("form", ["negatives", "all"])
def test_what_is_not_finite_is_not_hidden_by_pixel_contrast(form, value):
    """Of rows that like their own class and no other, infinite cosines lose nothing."""
    labels = torch.arange(100) % 3
    for dtype in (F32, BF16):
        x = unit_rows(100, 16, dtype)
        x[:, 3] = torch.where(labels == 2, 1, -1) * x[:, 3].abs()
        x[50, 3] = value
        loss, gradient = both_ways(pixel, x, labels, None, 0.1, form, 255)
        assert loss.isnan() and gradient.isnan().any()


@pytest.mark.parametrize("place", [0, 8])
def test_a_pair_that_is_not_finite_is_not_hidden(place):
    """Whichever way its exponential is computed: Hopper has two, by turns of eight keys."""
    x, settings = unit_rows(10, 16, BF16), reference_pixel.Settings(0.1, "negatives", 255)
    x[1 + place] = torch.nan
    (rows, _), (keys, _) = two_ranks(x, torch.arange(10), 1, settings)
    assert pixel.denominators(rows, keys, settings).isnan()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_not_hidden_by_patch_consistency(value):
    """Of anchors that like their positives and no key, infinite cosines lose nothing."""
    for which in range(3):
        rows = [unit_rows(count, 16, F32) for count in (20, 20, 40)]
        for x, sign in zip(rows, (1, 1, -1), strict=True):
            x[:, 3] = sign * x[:, 3].abs()
        rows[which][7, 3] = value
        labels = torch.zeros(20, dtype=torch.int64), torch.ones(40, dtype=torch.int64)
        assert patch.forward(*rows, *labels, None, 0.05)[0].isnan()


@pytest.mark.parametrize("n", [9, 0])
def test_what_the_op_promises_torch(n):
    x, labels, *settings = pixel_case(n, 8, F32, "negatives")
    given = (x.requires_grad_(), labels, *settings, "", "cuda")
    opcheck(torch.ops.pipa_fast.pixel_contrast.default, given)


def test_pixel_contrast_repeats_bit_by_bit():
    """Though threads of a block go on in another order each time."""
    case = pixel_case(200, 64, BF16, "negatives")
    first, second = both_ways(pixel, *case), both_ways(pixel, *case)
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


@pytest.mark.parametrize("form", ["negatives", "all"])
@pytest.mark.parametrize(
    ("n", "m", "d", "kind", "classes"),
    [
        (1, 1, 8, BF16, 1),
        (3, 140, 16, F32, 2),
        (150, 130, 90, BF16, 5),  # padded to 96 columns, which a kernel of 128 takes
        (130, 20, 24, F16, 40),
        (100, 150, 128, BF16, 3),  # Hopper: a cluster whose second block has no row
        (300, 320, 72, F16, 2),  # its first block may skip keys that the second may not
        pytest.param(70, 300, 64, BF16, 1, marks=pytest.mark.slow),  # no row has a negative
        pytest.param(150, 600, 64, F16, 3, marks=pytest.mark.slow),
        pytest.param(40, 130, 128, F32, 5, marks=pytest.mark.slow),
        pytest.param(70, 90, 256, "tf32", 5, marks=pytest.mark.slow),
        pytest.param(140, 90, 256, BF16, 5, marks=pytest.mark.slow),
        pytest.param(70, 40, 512, F16, 3, marks=pytest.mark.slow),
        pytest.param(20, 40, 512, F32, 3, marks=pytest.mark.slow),
    ],
)
def test_pairs_with_rows_of_another_rank(n, m, d, kind, classes, form):
    """Each sum is no further from float64's than the reference's in the rows' dtype, and a bit."""
    torch.manual_seed(n + d)
    x, labels = unit_rows(n + m, d, precision(kind)), torch.randint(0, classes, (n + m,))
    labels = labels.masked_fill(torch.rand(n + m) < 0.1, 255)
    settings = reference_pixel.Settings(0.1, form, 255)
    cases = two_ranks(x, labels, n, settings)
    for name, found, same, truth in errors(pixel, cases, settings):
        assert found.isfinite().all() and found.dtype == F32, name
        allowed = BOUNDS[kind][name == "pulls" or kind == "tf32"]
        error, floor = ((v.double() - truth).norm() for v in (found, same))
        assert error <= 1.1 * floor + allowed * truth.norm() + 1e-6, name


def test_pairs_repeat_bit_by_bit_whatever_rows_without_part_hold():
    labels = torch.randint(0, 4, (200,)).masked_fill(torch.rand(200) < 0.3, 255)
    settings = reference_pixel.Settings(0.1, "negatives", 255)
    x = unit_rows(200, 64, BF16)
    found = []
    for filled in (x, x.masked_fill((labels == 255)[:, None], torch.nan)):
        (rows, _), (keys, _) = two_ranks(x, labels, 140, settings)
        rows, keys = rows._replace(x=filled[:140]), keys._replace(x=filled[140:])
        found.append([pixel.denominators(rows, keys, settings), pixel.pulls(rows, keys, settings)])
        found[-1] += pixel.positives(rows, keys, settings)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("form", ["negatives", "all"])
@pytest.mark.parametrize(("mine", "others"), [(0, 20), (20, 0), (20, 255), (255, 20)])
def test_pairs_of_nothing(mine, others, form):
    """No rows, no keys, and only ignored ones (255)."""
    counts = [20 if count == 255 else count for count in (mine, others)]
    x = unit_rows(sum(counts), 8, BF16)
    labels = torch.arange(sum(counts)) % 3
    settings = reference_pixel.Settings(0.1, form, 255)
    for count, part in ((mine, slice(0, counts[0])), (others, slice(counts[0], None))):
        if count == 255:
            labels[part] = 255
    (rows, _), (keys, _) = two_ranks(x, labels, counts[0], settings)
    sums = [pixel.denominators(rows, keys, settings), *pixel.positives(rows, keys, settings)]
    for values in (*sums, pixel.pulls(rows, keys, settings)):
        assert len(values) == counts[0] and not values.any()


@pytest.mark.parametrize(
    ("n", "m", "d", "kind", "classes", "splits"),
    [
        (1, 1, 8, BF16, 5, 1),
        (5, 0, 16, BF16, 5, 4),
        (100, 150, 64, BF16, 5, 4),
        (100, 150, 64, F16, 5, 1),
        (100, 150, 64, F32, 5, 2),
        (200, 400, 128, BF16, 1, 1),  # no anchor has a negative
        (130, 300, 90, F16, 30, 3),
        (130, 300, 256, BF16, 3, 1),
        (70, 33, 512, BF16, 5, 4),
        (40, 90, 512, F32, 5, 1),
        (150, 300, 512, BF16, 2, 1),  # Hopper: a cluster whose blocks may skip other keys
        (70, 90, 256, "tf32", 5, 1),
    ],
)
def test_patch_consistency(n, m, d, kind, classes, splits, monkeypatch):
    torch.manual_seed(n + d)
    dtype = precision(kind)
    a, p, k = (unit_rows(rows, d, dtype) for rows in (n, n, m))
    labels = torch.randint(-1, classes, (n,)), torch.randint(-1, classes, (m,))
    weights = torch.rand(n) if n % 2 == 0 else None
    monkeypatch.setattr(patch, "PROGRAMS", splits * n // patch.BLOCK + 1)
    monkeypatch.setattr(patch, "MAX_SPLITS", splits)
    loss, slope = patch.forward(a, p, k, *labels, weights, 0.1)
    wide = None if weights is None else weights.double()
    rows = a.double(), p.double(), k.double()
    expected = reference_patch.forward(*rows, *labels, wide, 0.1)
    check(kind, loss, expected[0], slope, expected[1])
    assert slope.dtype == torch.float32 and slope.shape == a.shape


@pytest.mark.parametrize("temperature", [0.1, 0.09, 0.03])
def test_float16_of_any_temperature(temperature):
    """Anchors on one side, all others on the other: e is as small as it can be."""
    torch.manual_seed(0)
    side = torch.ones(64) / 8  # and how far rows lie about it, or about its opposite
    a, p, k = (unit_rows(90, 64, F32) * far for far in (0.1, 0.5, 0.2))
    a, p, k = (F.normalize(rows).half() for rows in (side + a, p - side, k - side))
    labels = torch.randint(0, 3, (90,)), torch.randint(0, 3, (90,))
    loss, slope = patch.forward(a, p, k, *labels, None, temperature)
    rows = a.double(), p.double(), k.double()
    expected = reference_patch.forward(*rows, *labels, None, temperature)
    check(F16, loss, expected[0], slope, expected[1])


@pytest.mark.parametrize("form", ["negatives", "all"])
@pytest.mark.parametrize("temperature", [2 / 80, 0.1])
@pytest.mark.parametrize("n", [2, 3, 150])
def test_float16_of_a_row_far_from_all_others(n, temperature, form):
    """What fills up the last tile is nearer to it, and would be an entry beyond float16."""
    x, labels = one_against_all(n, F16)
    labels = labels * (n > 2)
    expected = both_ways(reference_pixel, x.double(), labels, None, temperature, form, 255)
    loss, gradient = both_ways(pixel, x, labels, None, temperature, form, 255)
    # It is the difference of terms 1 / temperature large, in float32.
    torch.testing.assert_close(loss.double(), expected[0], rtol=1e-4, atol=4e-7 / temperature)
    error = (gradient.double() - expected[1]).norm()
    # G is rounded to 11 bits, and near rows cancel. Of two, the terms are 1 / temperature large.
    assert error <= 1e-2 * expected[1].norm() + 1e-5 / temperature


@pytest.mark.parametrize("form", ["negatives", "all"])
@pytest.mark.parametrize("temperature", [2 / 80, 0.1])
def test_float16_of_a_row_far_from_those_of_all_ranks(temperature, form):
    x, labels = one_against_all(160, F16)
    settings = reference_pixel.Settings(temperature, form, 255)
    cases = two_ranks(x, labels, 20, settings)
    for name, found, same, truth in errors(pixel, cases, settings):
        assert found.isfinite().all(), name
        error, floor = ((v.double() - truth).norm() for v in (found, same))
        assert error <= 1.1 * floor + 5e-3 * truth.norm() + 1e-6, name


def test_why_cuda_cannot_run():
    problem = Problem(torch.device("cpu"))
    assert "CUDA tensors" in cuda_why_not(problem)
    if not torch.cuda.is_available():
        reason = cuda_why_not(problem._replace(device=torch.device("cuda")))
        assert "PIPA_FAST_CUDA=1" in reason or "no GPU" in reason
