# SPDX-License-Identifier: Apache-2.0
"""kernels/pixel_contrast against the equation in float64, in the interpreter where no GPU is."""

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")
from pipa_fast.kernels import _launch, _pixel_contrast_ranks, pixel_contrast
from pipa_fast.kernels import _pixel_contrast_tiles as shipped
from pipa_fast.kernels._launch import Tile, TileRow
from pipa_fast.ops import pixel_contrast as op
from pipa_fast.reference.pixel_contrast import Rows, Settings
from tests.csrc.two_ranks import errors, two_ranks
from tests.equations import IGNORE, assert_gradient_close, one_against_all, unit_rows
from tests.equations import pixel_contrast as truth

LAYOUTS = {
    "even": lambda n: torch.arange(n) % 4,
    "skewed": lambda n: (torch.rand(n) ** 3 * 19).long(),
    "two classes": lambda n: (torch.arange(n) < n // 3).long(),
    "one class": lambda n: torch.full((n,), 7),
    "singletons": lambda n: torch.randperm(n),
    "a pair and singletons": lambda n: torch.arange(n).clamp(min=1),
    "ignored": lambda n: torch.full((n,), IGNORE),
    "some ignored": lambda n: torch.where(torch.rand(n) < 0.3, IGNORE, torch.arange(n) % 3),
    "far apart": lambda n: torch.tensor([-(2**63), 0, 2**63 - 1])[torch.arange(n) % 3],
}
WEIGHTED = ("skewed", "a pair and singletons", "some ignored", "far apart")
FORMS = pytest.mark.parametrize("form", ["negatives", "all"])
PATHS = pytest.mark.parametrize("path", ["few", "many"])


@pytest.fixture(autouse=True)
def poison():
    """Memory that nobody wrote holds NaN, or the largest integer."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def cut(monkeypatch):
    """Sets tiles and the path, so that a few rows make many tiles or a few programs."""

    def set_tiles(
        path="few", apart=(64, 64), mixed=(64, 64), pull=None, gradient=None, run=2, parts=2
    ):
        monkeypatch.setattr(pixel_contrast, "FEW_ROWS", 0 if path == "many" else 10**9)
        monkeypatch.setattr(pixel_contrast, "RUN", run)
        monkeypatch.setattr(pixel_contrast, "PARTS", parts)
        if not torch.cuda.is_available():  # few programs; on a GPU they would spill for minutes
            monkeypatch.setattr(pixel_contrast, "SORT_TILE", Tile(128, 0, 4, 1))
            monkeypatch.setattr(pixel_contrast, "SUM_TILE", Tile(64, 64, 4, 1))
        pull = pull or mixed
        tables = dict(APART=apart, MIXED=mixed, PULL=pull, GRADIENT=gradient or pull)
        for name, (block_m, block_n) in {**tables, "FEW": mixed}.items():
            # Deeper rows would take more shared memory than a GPU has, in tiles as large.
            tiles = {64: Tile(block_m, block_n, 4, 2), 512: Tile(16, 16, 4, 2)}
            rows = tuple(
                TileRow(chip, depth, width, tile, "")
                for chip in _launch.SHARED_MEMORY
                for width in (2, 4)
                for depth, tile in tiles.items()
            )
            monkeypatch.setattr(pixel_contrast, name, rows)

    set_tiles()
    return set_tiles


def run(device, x, labels, weights, temperature, form, grad=1.0):
    """Loss, gradient, z and u of the kernels."""
    x, labels = x.to(device), labels.to(device)
    weights = None if weights is None else weights.to(device)
    settings = (temperature, form, IGNORE)
    loss, z, u = pixel_contrast.forward(x, labels, weights, *settings)
    grad = torch.tensor(grad, device=device)
    gradient = pixel_contrast.backward(grad, x, labels, weights, z, u, *settings)
    return loss.cpu(), gradient.cpu(), z.cpu(), u.cpu()


def check(device, n, d, layout, form, weights=None, temperature=0.1):
    x, labels = unit_rows(n, d), LAYOUTS[layout](n)
    loss, gradient, z, _ = run(device, x, labels, weights, temperature, form)
    expected, expected_gradient, expected_z = truth(x, labels, weights, temperature, form)
    # One positive and nothing else: the terms, each 1 / temperature large, cancel exactly.
    cancels = form == "all" and not expected_gradient.any()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    assert_gradient_close(gradient, expected_gradient, allowed=2e-5 if cancels else 0)
    torch.testing.assert_close(z.double(), expected_z, rtol=1e-5, atol=0)


@FORMS
@PATHS
@pytest.mark.parametrize("layout", LAYOUTS)
def test_loss_and_gradient_are_the_equation(device, cut, layout, path, form):
    cut(path)
    check(device, 150, 20, layout, form, torch.rand(150) if layout in WEIGHTED else None)


@FORMS
@PATHS
@pytest.mark.parametrize(
    "n, d", [(0, 8), (1, 8), (2, 5), (5, 1), (64, 16), (65, 33), (128, 8), (97, 130), (40, 512)]
)
def test_sizes(device, cut, n, d, path, form):
    cut(path)
    check(device, n, d, "even", form)


# Tiles of 16 rows: an even and an odd number of them, one and two, whole and not; more shifts than
# a launch takes at D = 5.
@FORMS
@pytest.mark.parametrize(
    "n",
    [15, 16, 32, 48, 64, 73, *[pytest.param(n, marks=pytest.mark.slow) for n in (80, 101, 300)]],
)
def test_each_pair_of_tiles_is_met_once(device, cut, n, form):
    cut("many", apart=(16, 16), mixed=(16, 16), pull=(64, 64), run=3, parts=1)
    for layout in ["even"] if n > 200 else ["skewed", "two classes", "some ignored"]:
        check(device, n, 5, layout, form)


@pytest.mark.parametrize(
    "tiles",
    [
        dict(apart=(32, 16), mixed=(16, 32), pull=(64, 64), gradient=(32, 32)),
        pytest.param(
            dict(apart=(64, 16), mixed=(32, 16), pull=(16, 64), gradient=(16, 16), run=1),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            dict(apart=(128, 32), mixed=(64, 64), pull=(64, 16), parts=3), marks=pytest.mark.slow
        ),
    ],
)
@FORMS
def test_tiles_of_any_shape(device, cut, tiles, form):
    cut("many", **tiles)
    for layout in ("some ignored", "two classes"):
        check(device, 203, 12, layout, form)


def test_shipped_tiles_fit_each_other():
    """One kernel visits what another left out, in tiles of its own."""
    tables = (shipped.APART, shipped.MIXED, shipped.PULL, shipped.GRADIENT)
    for chip in _launch.SHARED_MEMORY:
        for depth in (16, 32, 64, 128, 256, 512):
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                tiles = [_launch.choose_tile(table, chip, depth, dtype) for table in tables]
                apart, mixed, pull, gradient = tiles
                assert all(pixel_contrast.ALIGNED_ROWS % tile.block_m == 0 for tile in tiles)
                assert apart.block_m % apart.block_n == 0
                assert apart.block_m % mixed.block_m == apart.block_m % mixed.block_n == 0
                assert pull.block_m % gradient.block_m == pull.block_n % gradient.block_n == 0


@PATHS
@FORMS
def test_half_precision(device, cut, path, form):
    cut(path)
    x, labels = unit_rows(150, 40).half(), LAYOUTS["skewed"](150)
    for weights in (None, 1e6 * torch.rand(150)):
        loss, gradient, _, _ = run(device, x, labels, weights, 0.1, form)
        expected, expected_gradient, _ = truth(x, labels, weights, 0.1, form)
        torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
        assert gradient.dtype == torch.float16
        # G is rounded to 11 bits, and so is the gradient.
        assert_gradient_close(gradient, expected_gradient, relative=1e-3)


@PATHS
@FORMS
@pytest.mark.parametrize("n", [2, 3, 40])
@pytest.mark.parametrize("temperature", [2 / 80, 0.1])
def test_half_precision_of_a_row_far_from_all_others(device, cut, temperature, n, path, form):
    """What fills up the last tile is nearer to it, and would be an entry beyond float16."""
    cut(path, apart=(16, 16), mixed=(16, 16))
    x, labels = one_against_all(n, torch.float16)
    labels = labels * (n > 2)
    loss, gradient, _, _ = run(device, x, labels, None, temperature, form)
    expected, expected_gradient, _ = truth(x, labels, None, temperature, form)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=1e-6)
    # G is rounded to 11 bits, and near rows cancel. Of two, the terms are 1 / temperature large.
    assert_gradient_close(gradient, expected_gradient, relative=1e-2, allowed=1e-5 / temperature)


@FORMS
@pytest.mark.parametrize("temperature", [2 / 80, 0.1])
def test_half_precision_of_a_row_far_from_those_of_all_ranks(device, cut, temperature, form):
    cut(mixed=(16, 16))
    x, labels = one_against_all(40, torch.float16)
    settings = Settings(temperature, form, IGNORE)
    for name, found, same, expected in errors(
        _pixel_contrast_ranks, two_ranks(x, labels, 18, settings), settings
    ):
        assert found.isfinite().all(), name
        error, floor = ((v.double() - expected).norm() for v in (found, same))
        assert error <= 1.1 * floor + 5e-3 * expected.norm() + 1e-6, name


@PATHS
@FORMS
@pytest.mark.parametrize("temperature", [2 / 80, 2.0])
def test_any_temperature_that_a_fixed_shift_carries(device, cut, temperature, path, form):
    # Opposite rows: e is as small as exp(-2 / temperature) wherever the classes differ.
    cut(path)
    side = torch.arange(60) % 2
    sign = torch.where(side == 0, 1.0, -1.0)[:, None]
    x = F.normalize(sign + 0.02 * torch.randn(60, 12), dim=1)
    for labels in (side, side[torch.randperm(60)]):
        loss, gradient, _, _ = run(device, x, labels, None, temperature, form)
        expected, expected_gradient, _ = truth(x, labels, None, temperature, form)
        torch.testing.assert_close(loss.double(), expected, rtol=3e-5, atol=1e-30)
        # Near rows of one class cancel: autograd in float32 errs likewise.
        in_float = truth(x, labels, None, temperature, form, torch.float32)[1]
        allowed = 2 * (in_float.double() - expected_gradient).norm()
        assert_gradient_close(gradient, expected_gradient, allowed=allowed)


@PATHS
def test_small_losses_keep_their_relative_accuracy(device, cut, path):
    cut(path)
    x = F.normalize(torch.eye(8)[torch.arange(64) % 2] + 1e-3 * torch.randn(64, 8), dim=1)
    labels = torch.arange(64) % 2
    loss, gradient, _, _ = run(device, x, labels, None, 0.04, "negatives")
    expected, expected_gradient, _ = truth(x, labels, None, 0.04, "negatives")
    assert expected < 1e-8
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=0)
    assert_gradient_close(gradient, expected_gradient)


@PATHS
def test_nothing_to_sum_is_exactly_zero(device, cut, path):
    cut(path)
    x = unit_rows(40, 8)
    for layout in ("one class", "singletons", "ignored"):
        loss, gradient, _, u = run(device, x, LAYOUTS[layout](40), None, 0.1, "negatives")
        assert loss == 0 and not gradient.any() and not u.any()
    for form in ("negatives", "all"):
        loss, gradient, _, _ = run(device, x, torch.arange(40) % 2, torch.zeros(40), 0.1, form)
        assert loss == 0 and not gradient.any(), "all weights are zero"


@PATHS
@FORMS
def test_what_is_not_finite_is_not_hidden_nor_taken_from_ignored_rows(device, cut, path, form):
    cut(path)
    labels = torch.arange(100) % 3
    for row, value in ((0, torch.nan), (99, torch.nan), (50, torch.inf)):
        x = unit_rows(100, 16)
        x[labels == 2, 3] = x[labels == 2, 3].abs()  # cosines with its own class are +inf, which
        x[labels != 2, 3] = -x[labels != 2, 3].abs()  # lose nothing, and others are -inf
        x[row, 3] = value
        loss, gradient, _, _ = run(device, x, labels, None, 0.1, form)
        assert loss.isnan() and gradient.isnan().any()
        ignored = labels.clone()
        ignored[row] = IGNORE
        loss, gradient, _, _ = run(device, x, ignored, None, 0.1, form)
        assert loss.isfinite() and gradient.isfinite().all() and not gradient[row].any()


@PATHS
@FORMS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_weights_of_rows_that_are_no_anchors_may_be_anything(device, cut, dtype, path, form):
    cut(path)
    x, labels, weights = unit_rows(60, 16).to(dtype), torch.arange(60) % 3, torch.rand(60)
    labels[7], labels[50] = IGNORE, 9  # who is alone in its class is no anchor either
    weights[7] = weights[50] = 0
    expected = run(device, x, labels, weights, 0.1, form)
    for row in (7, 50):
        for value in (torch.nan, torch.inf, 1e30):
            strange = weights.index_fill(0, torch.tensor(row), value)
            found = run(device, x, labels, strange, 0.1, form)
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    for value in (torch.nan, torch.inf):
        strange = weights.index_fill(0, torch.tensor(3), value)
        loss, gradient, _, _ = run(device, x, labels, strange, 0.1, form)
        assert loss.isnan() and gradient.isnan().any(), "nor is an anchor's hidden"


@PATHS
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_and_alone_in_its_class_is_not_hidden(device, cut, path, value):
    cut(path)
    x, labels = unit_rows(100, 16), torch.arange(100) % 3
    labels[7], x[7, 3] = 9, value
    loss, *_ = run(device, x, labels, None, 0.1, "negatives")
    assert loss.isnan()


def test_a_sum_that_is_not_finite_is_not_hidden_from_ranks(device):
    x, labels, w = unit_rows(40, 16), torch.arange(40) % 3, torch.ones(40)
    rows = Rows(*(t.to(device) for t in (x, labels, w, torch.full_like(w, torch.nan))))
    losses, _ = _pixel_contrast_ranks.positives(rows, None, Settings(0.1, "negatives", IGNORE))
    assert losses.isnan().all()


@PATHS
@FORMS
def test_twice_the_same_bits_from_any_strides(device, cut, path, form):
    cut(path)
    x, labels, weights = unit_rows(150, 20), LAYOUTS["skewed"](150), torch.rand(150)
    first = run(device, x, labels, weights, 0.1, form)
    spread = torch.empty(20, 300).T[::2].copy_(x)
    assert not spread.is_contiguous()
    for other in (x, spread):
        second = run(device, other, labels, weights, 0.1, form)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@FORMS
def test_what_the_op_promises_torch(device, form):
    for n in (9, 0):
        x = unit_rows(n, 8).to(device).requires_grad_()
        labels = torch.arange(n, device=device) % 3
        given = (x, labels, torch.rand(n, device=device), 0.1, form, IGNORE, "", "triton")
        opcheck(torch.ops.pipa_fast.pixel_contrast.default, given)


@PATHS
@FORMS
def test_gradient_scales_with_the_gradient_of_the_loss(device, cut, path, form):
    cut(path)
    x, labels = unit_rows(50, 16), torch.arange(50) % 3
    once = run(device, x, labels, None, 0.1, form, 1.0)[1]
    torch.testing.assert_close(run(device, x, labels, None, 0.1, form, -4.0)[1], -4 * once)


class Counted(TorchDispatchMode):
    """Counts torch's operators that compute; views and allocations do not."""

    FREE = ("empty", "view", "slice", "select", "unbind", "detach", "transpose", "alias", "fill")

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().split("::")[1]
        if not any(word in name for word in self.FREE):
            self.names.append(name)
        return function(*args, **(kwargs or {}))


# A torch operator is a launch or two, torch.sort some more.
@pytest.mark.parametrize(
    "path, form, forward, backward",
    [
        ("few", "negatives", (2, 3), (2, 1)),
        ("few", "all", (2, 3), (2, 1)),
        ("many", "negatives", (5, 7), (3, 3)),
        ("many", "all", (6, 7), (5, 3)),
    ],
)
def test_number_of_launches(device, cut, monkeypatch, path, form, forward, backward):
    cut(path)
    launched = []
    launch = _launch.launch

    def count(kernel, *rest, **constants):
        launched.append(kernel)
        with torch.utils._python_dispatch._disable_current_modes():
            launch(kernel, *rest, **constants)

    monkeypatch.setattr(_launch, "launch", count)
    x, labels = unit_rows(150, 16).to(device), LAYOUTS["even"](150).to(device)
    settings, grad = (0.1, form, IGNORE), torch.ones((), device=device)
    with Counted() as operators:
        _, z, u = pixel_contrast.forward(x, labels, None, *settings)
    assert (len(launched), len(operators.names)) == forward, operators.names
    launched.clear()
    with Counted() as operators:
        pixel_contrast.backward(grad, x, labels, None, z, u, *settings)
    assert (len(launched), len(operators.names)) == backward, operators.names


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@FORMS
def test_op_under_a_cuda_graph(form):
    x = unit_rows(1024, 256).cuda().bfloat16().requires_grad_()
    labels = (torch.arange(1024) % 16).cuda()

    def step():
        loss = op(x, labels, denominator=form, backend="triton")
        return loss, *torch.autograd.grad(loss, x)

    eager = step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(eager, captured, strict=True))
