# SPDX-License-Identifier: Apache-2.0
"""csrc/cpu/pixel_contrast against the equation in float64, on every instruction set that runs."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.equations import IGNORE, assert_gradient_close, pixel_contrast, unit_rows

# A tile is 6 x 8, 6 x 16 or 12 x 32, a block 96 rows; depth is padded to 4, 8 or 16.
SIZES = [(0, 8), (1, 8), (2, 5), (5, 1), (6, 64), (7, 130), (16, 512), (96, 64), (97, 8), (97, 33)]
SIZES += [(192, 16), (301, 130)]
LAYOUTS = {
    "even": lambda n: torch.arange(n) % 4,
    "skewed": lambda n: (torch.rand(n) ** 3 * 19).long(),
    "one class": lambda n: torch.full((n,), 7),
    "singletons": lambda n: torch.randperm(n),
    "a pair and singletons": lambda n: torch.arange(n).clamp(min=1),
    "ignored": lambda n: torch.full((n,), IGNORE),
    "some ignored": lambda n: torch.where(torch.rand(n) < 0.3, IGNORE, torch.arange(n) % 3),
    "far apart": lambda n: torch.tensor([-(2**62), 0, 2**62])[torch.arange(n) % 3],
}


def truth(x, labels, weights, temperature, all_form, dtype=torch.float64):
    form = "all" if all_form else "negatives"
    return pixel_contrast(x, labels, weights, temperature, form, dtype)


def run(native, x, labels, weights, temperature, all_form, isa, grad=1.0):
    """Loss, gradient, z and u of the native operators."""
    options = (temperature, all_form, IGNORE, isa)
    loss, z, u = native.pixel_contrast_forward(x, labels, weights, *options)
    gradient = native.pixel_contrast_backward(
        torch.tensor(grad), x, labels, weights, z, u, *options
    )
    return loss, gradient, z, u


@pytest.mark.parametrize("all_form", [False, True], ids=["negatives", "all"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_loss_and_gradient_are_the_equation(native, isa, layout, all_form):
    for n, d in SIZES:
        x, labels = unit_rows(n, d), LAYOUTS[layout](n)
        for weights in (None, torch.rand(n)):
            loss, gradient, z, _ = run(native, x, labels, weights, 0.1, all_form, isa)
            expected, expected_gradient, expected_z = truth(x, labels, weights, 0.1, all_form)
            # One positive and nothing else: the terms, each 1 / temperature large, cancel exactly.
            size_is_zero = all_form and not expected_gradient.any()
            torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
            allowed = 2e-5 if size_is_zero else 0
            assert_gradient_close(gradient, expected_gradient, allowed=allowed)
            alive = labels[labels != IGNORE]
            if alive.unique().numel() == len(alive):
                assert not z.any(), "without an anchor nothing is summed"
            elif all_form or layout != "one class":
                torch.testing.assert_close(z.double(), expected_z, rtol=1e-5, atol=0)


def test_nothing_to_sum_is_exactly_zero(native, isa):
    x = unit_rows(40, 8)
    for labels in (LAYOUTS["one class"](40), LAYOUTS["singletons"](40), LAYOUTS["ignored"](40)):
        loss, gradient, _, u = run(native, x, labels, None, 0.1, False, isa)
        assert loss == 0 and not gradient.any() and not u.any()
    labels = torch.arange(40) % 2
    loss, gradient, _, _ = run(native, x, labels, torch.zeros(40), 0.1, False, isa)
    assert loss == 0 and not gradient.any(), "all weights are zero"


@pytest.mark.parametrize("all_form", [False, True], ids=["negatives", "all"])
@pytest.mark.parametrize("temperature", [2 / 80, 0.07, 2.0])
def test_any_temperature_that_a_fixed_shift_carries(native, isa, temperature, all_form):
    # Opposite rows: e is as small as exp(-2 / temperature) wherever the classes differ.
    side = torch.arange(60) % 2
    x = F.normalize(
        torch.where(side == 0, 1.0, -1.0)[:, None] * torch.ones(12) + 0.02 * torch.randn(60, 12),
        dim=1,
    )
    for features, labels in ((x, side), (x, side[torch.randperm(60)]), (unit_rows(60, 12), side)):
        loss, gradient, _, _ = run(native, features, labels, None, temperature, all_form, isa)
        expected, expected_gradient, _ = truth(features, labels, None, temperature, all_form)
        torch.testing.assert_close(loss.double(), expected, rtol=3e-5, atol=1e-30)
        # Near rows of one class cancel: autograd in float32 errs likewise.
        in_float = truth(features, labels, None, temperature, all_form, torch.float32)[1]
        allowed = 2 * (in_float.double() - expected_gradient).norm()
        assert_gradient_close(gradient, expected_gradient, allowed=allowed)


def test_exponential_and_logarithm_are_good_to_a_few_ulp(native, isa):
    # The first row's only negative is the second, its positive itself again: z is one e and the
    # loss one softplus. At temperature 2 rounding of the cosine hardly counts.
    labels, weights, worst = torch.tensor([0, 1, 0]), torch.tensor([1.0, 0, 0]), torch.zeros(2)
    for angle in torch.linspace(0, torch.pi, 400, dtype=torch.float64):
        second = torch.stack([angle.cos(), angle.sin()]).float()
        x = torch.stack([torch.tensor([1.0, 0.0]), second, torch.tensor([1.0, 0.0])])
        loss, z, _ = native.pixel_contrast_forward(x, labels, weights, 2.0, False, IGNORE, isa)
        e = ((x[1, 0].double() - 1) / 2).exp()
        error = torch.stack([z[0] / e - 1, loss / e.log1p() - 1]).abs()
        worst = torch.maximum(worst, error)
    assert worst[0] < 3e-7 and worst[1] < 4e-7


def test_small_losses_keep_their_relative_accuracy(native, isa):
    x = F.normalize(torch.eye(8)[torch.arange(64) % 2] + 1e-3 * torch.randn(64, 8), dim=1)
    labels = torch.arange(64) % 2
    loss, gradient, _, _ = run(native, x, labels, None, 0.04, False, isa)
    expected, expected_gradient, _ = truth(x, labels, None, 0.04, False)
    assert expected < 1e-8
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=0)
    assert_gradient_close(gradient, expected_gradient)


def test_like_terms_are_summed_in_levels(native, isa):
    # Equal rows: every sum has like terms, whose rounding errors add up. In one run over a block
    # they come to 5e-6 of a gradient that is itself a third of the positives' pull.
    x, labels = unit_rows(1, 64).expand(768, 64).contiguous(), LAYOUTS["skewed"](768)
    _, gradient, _, _ = run(native, x, labels, None, 0.1, False, isa)
    _, expected, _ = truth(x, labels, None, 0.1, False)
    assert (gradient - expected).norm() < 3.5e-6 * expected.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("all_form", [False, True], ids=["negatives", "all"])
def test_half_types_are_converted_exactly(native, isa, dtype, all_form):
    x = unit_rows(150, 20).to(dtype)
    x[0, :3] = torch.tensor([6e-8, -3e-6, 0.0], dtype=dtype)  # subnormal in float16
    labels = torch.arange(150) % 5
    # A gradient scaled to meet float16's subnormals, its range and its overflow.
    for grad in (1e-4, 1.0, 1e8):
        half = run(native, x, labels, None, 0.1, all_form, isa, grad)
        full = run(native, x.float(), labels, None, 0.1, all_form, isa, grad)
        assert half[0] == full[0]
        assert half[1].dtype == dtype
        assert torch.equal(half[1], full[1].to(dtype))


@pytest.mark.parametrize("all_form", [False, True], ids=["negatives", "all"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_products_of_bfloat16_are_those_of_floats(native, bf16_isa, layout, all_form):
    # Products of bfloat16 are exact in float, so only the order of their sums differs.
    plain = bf16_isa.removesuffix("_bf16")
    for n, d in SIZES:
        x, labels, weights = unit_rows(n, d).bfloat16(), LAYOUTS[layout](n), torch.rand(n)
        pairs = run(native, x, labels, weights, 0.1, all_form, bf16_isa)
        floats = run(native, x.float(), labels, weights, 0.1, all_form, plain)
        assert pairs[1].dtype == torch.bfloat16
        torch.testing.assert_close(pairs[0], floats[0], rtol=2e-6, atol=1e-7)
        torch.testing.assert_close(pairs[2:], floats[2:], rtol=2e-5, atol=0)
        # Half a step of bfloat16's last place, and what the order of sums does where terms cancel.
        size = 2e-6 / 0.1 / max(n, 1) ** 0.5
        torch.testing.assert_close(pairs[1].float(), floats[1], rtol=2**-8, atol=size)


def test_bf16_sets_treat_other_dtypes_as_those_without(native, bf16_isa):
    plain = bf16_isa.removesuffix("_bf16")
    for dtype in (torch.float32, torch.float16):
        x, labels = unit_rows(130, 24).to(dtype), torch.arange(130) % 5
        found = [run(native, x, labels, None, 0.1, False, isa) for isa in (bf16_isa, plain)]
        assert all(torch.equal(*results) for results in zip(*found, strict=True))


def test_nan_in_bfloat16_is_not_hidden(native, bf16_isa):
    x = unit_rows(100, 16).bfloat16()
    x[99, 3] = torch.nan
    loss, gradient, _, _ = run(native, x, torch.arange(100) % 3, None, 0.1, False, bf16_isa)
    assert loss.isnan() and gradient.isnan().any()


def test_all_finite_halves_are_read_as_torch_reads_them(native, isa):
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        values = bits.view(dtype)
        # One column, one class: the "all" form's gradient of a row is linear in the other rows,
        # and equal only if every bit pattern was read alike.
        finite = values[values.abs() <= 1].contiguous()[:, None]
        picks = finite[:: max(1, len(finite) // 600)].contiguous()
        labels = torch.zeros(len(picks), dtype=torch.int64)
        half = native.pixel_contrast_forward(picks, labels, None, 0.5, True, IGNORE, isa)
        full = native.pixel_contrast_forward(picks.float(), labels, None, 0.5, True, IGNORE, isa)
        assert all(torch.equal(a, b) for a, b in zip(half, full, strict=True))


@pytest.mark.parametrize("all_form", [False, True], ids=["negatives", "all"])
def test_threads_do_not_change_a_bit(native, isa, all_form, threads):
    n = 3300  # enough for groups of blocks
    x, labels = unit_rows(n, 24), LAYOUTS["skewed"](n)
    results = []
    for count in (1, 2, 4, 8, 4, 1):
        threads(count)
        results.append(run(native, x, labels, None, 0.1, all_form, isa))
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))
    expected, expected_gradient, _ = truth(x, labels, None, 0.1, all_form)
    torch.testing.assert_close(results[0][0].double(), expected, rtol=1e-5, atol=0)
    assert_gradient_close(results[0][1], expected_gradient)


@pytest.mark.parametrize("all_form", [False, True], ids=["negatives", "all"])
def test_more_blocks_than_groups(native, host, all_form, threads):
    # Blocks share groups from MAX_GROUPS on; the first and last rows are checked one by one.
    n, tau = host.BLOCK_ROWS * (host.MAX_GROUPS + 3) + 11, 0.2
    x, labels = unit_rows(n, 4), LAYOUTS["skewed"](n)
    threads(3)
    loss, gradient, z, u = run(native, x, labels, None, tau, all_form, "")
    assert torch.isfinite(loss)
    rows = torch.cat([torch.arange(20), torch.randint(0, n, (60,)), torch.arange(n - 20, n)])
    picked, everything = x[rows].double(), x.double()
    e = ((picked @ everything.T - 1) / tau).exp()
    other = rows[:, None] != torch.arange(n)
    same = (labels[rows][:, None] == labels) & other
    used = other if all_form else labels[rows][:, None] != labels
    torch.testing.assert_close(z[rows].double(), (e * used).sum(1), rtol=1e-5, atol=0)
    count = torch.bincount(labels)[labels] - 1
    w = 1.0 / (count.clamp(min=1) * (count > 0).sum())
    g = e * (u[rows].double()[:, None] + u.double()) * used
    if all_form:
        g -= (w[rows][:, None] + w) * same
    else:
        z = z.double()
        g -= same * (w[rows] * z[rows])[:, None] / (z[rows][:, None] + e)
        g -= same * (w * z) / (z + e)
    assert_gradient_close(gradient[rows], (g @ everything) / tau)


def test_gradient_scales_with_the_gradient_of_the_loss(native, isa):
    x, labels = unit_rows(50, 16), torch.arange(50) % 3
    once = run(native, x, labels, None, 0.1, False, isa, 1.0)[1]
    torch.testing.assert_close(run(native, x, labels, None, 0.1, False, isa, -4.0)[1], -4 * once)


@pytest.mark.parametrize("all_form", [False, True], ids=["negatives", "all"])
def test_nan_is_not_hidden(native, isa, all_form):
    for row in (0, 99):
        x = unit_rows(100, 16)
        x[row, 3] = torch.nan
        labels = torch.arange(100) % 3
        loss, gradient, _, _ = run(native, x, labels, None, 0.1, all_form, isa)
        assert loss.isnan() and gradient.isnan().any()


def test_wrong_arguments_are_refused(native):
    x, labels = unit_rows(8, 4), torch.arange(8) % 2
    good = dict(weights=None, temperature=0.1, all_form=False, ignore_index=255, isa="")

    def refused(match: str, x: Tensor = x, labels: Tensor = labels, **changed):
        with pytest.raises(RuntimeError, match=match):
            native.pixel_contrast_forward(x, labels, **{**good, **changed})

    refused("x must be a contiguous", x=x.T)
    refused("x must be a contiguous", x=x[0])
    refused("x must have 1 to 512 columns, got 513", x=torch.zeros(8, 513))
    refused("x must have fewer than 2.30 rows", x=torch.empty(2**30, 1, dtype=torch.bfloat16))
    refused("x must be float32", x=x.double())
    refused("labels must be", labels=labels.int())
    refused("labels must be", labels=labels[:7])
    refused("weights must be", weights=torch.ones(7))
    refused("temperature must be at least 0.025", temperature=0.02)
    refused("temperature must be", temperature=float("nan"))
    refused("isa must be", isa="sse")
    with pytest.raises(RuntimeError, match="grad must be"):
        native.pixel_contrast_backward(
            torch.ones(2), x, labels, None, torch.ones(8), torch.ones(8), 0.1, False, 255, ""
        )
    with pytest.raises(RuntimeError, match="z must be"):
        native.pixel_contrast_backward(
            torch.ones(()), x, labels, None, torch.ones(7), torch.ones(8), 0.1, False, 255, ""
        )
