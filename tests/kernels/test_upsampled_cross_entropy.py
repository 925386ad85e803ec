# SPDX-License-Identifier: Apache-2.0
"""kernels/upsampled_cross_entropy against the equation in float64."""

import pytest
import torch

pytest.importorskip("triton")
from pipa_fast.kernels import upsampled_cross_entropy as kernels
from pipa_fast.kernels._launch import Tile
from tests.equations import upsampled_cross_entropy as truth

# Images, classes, and the sizes of the map and of the labels.
SIZES = [
    pytest.param((2, 5, (2, 5), (4, 18)), marks=pytest.mark.slow),
    (1, 3, (4, 3), (8, 6)),
    (1, 2, (3, 2), (3, 2)),  # nothing to enlarge
    (1, 3, (5, 9), (2, 5)),  # downscaling
    (2, 1, (2, 3), (5, 4)),  # one class: no loss
    (1, 3, (1, 3), (3, 5)),  # a single row, column, cell, pixel
    (1, 3, (3, 1), (5, 3)),
    (1, 3, (1, 1), (2, 3)),
    (1, 3, (3, 3), (1, 1)),
]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Several blocks of classes, pixels and cells even in small maps."""
    monkeypatch.setattr(kernels, "PIXELS", Tile(4, 16, 4, 1))
    monkeypatch.setattr(kernels, "CELLS", Tile(4, 4, 4, 1))


def problem(device, images, classes, small, full, dtype=torch.float32):
    logits = (3 * torch.randn(images, classes, *small)).to(device, dtype)
    labels = torch.randint(0, classes, (images, *full))
    labels[torch.rand(labels.shape) < 0.2] = 255
    return logits, labels.to(device)


def check(logits, labels, weights=None, ignore_index=255, all_pixels=False):
    arguments = (logits, labels, weights, ignore_index, all_pixels)
    loss, slope = kernels.forward(*arguments, True)
    expected, gradient = truth(*arguments)
    assert loss.dtype == slope.dtype == torch.float32
    size = gradient.norm()
    torch.testing.assert_close(loss.double(), expected, rtol=3e-6, atol=3e-7)
    close = {"rtol": 1e-4, "atol": float(3e-6 * size) + 1e-8}
    torch.testing.assert_close(slope.double(), gradient, **close)
    assert (slope.double() - gradient).norm() <= 3e-6 * size + 1e-8
    return loss, slope


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_loss_and_gradient_are_the_equation(device, size):
    logits, labels = problem(device, *size)
    check(logits, labels, torch.rand(labels.shape).to(device), all_pixels=True)
    alone, none = kernels.forward(logits, labels, None, 255, False, False)
    assert none.numel() == 0
    torch.testing.assert_close(alone.double(), truth(logits, labels, None, 255, False)[0])


def test_half_types(device):
    logits, labels = problem(device, 1, 5, (2, 3), (4, 5), torch.float16)
    check(logits, labels)
    bits = logits.to(torch.bfloat16)
    if device.type == "cuda":
        check(bits, labels)


@pytest.mark.slow
def test_shipped_tiles(device, monkeypatch):
    monkeypatch.undo()
    logits, labels = problem(device, 1, 19, (4, 6), (16, 24))
    check(logits, labels, torch.rand(labels.shape).to(device))
    check(*problem(device, 1, 3, (2, 150), (3, 160)))


def test_what_is_ignored(device):
    logits, labels = problem(device, 1, 3, (2, 3), (4, 5))
    for ignore_index in (1, 2**40):
        check(logits, labels.masked_fill(labels == 255, ignore_index), None, ignore_index)
    for average in (False, True):
        nothing = torch.full_like(labels, 255)
        loss, slope = check(logits, nothing, None, 255, average)
        assert loss == 0 and not slope.any()


def test_no_pixels(device):
    for shape, full in (((0, 3, 2, 2), (0, 4, 4)), ((1, 3, 2, 2), (1, 0, 4))):
        labels = torch.zeros(full, dtype=torch.int64, device=device)
        logits = torch.randn(shape, device=device)
        loss, slope = kernels.forward(logits, labels, None, 255, False, True)
        assert loss == 0 and slope.shape == shape and not slope.any()


def test_results_repeat(device):
    logits, labels = problem(device, 1, 3, (2, 4), (3, 8))
    last = logits.to(memory_format=torch.channels_last)
    for a, b in zip(check(logits, labels), check(last, labels), strict=True):
        assert torch.equal(a, b)


def test_extremes_and_nan(device):
    logits, labels = problem(device, 1, 3, (2, 3), (2, 3))
    check(1e4 * logits, labels)
    logits[0, 0, 0, 0] = torch.nan
    labels[:] = 1
    loss, slope = kernels.forward(logits, labels, None, 255, False, True)
    assert loss.isnan() and slope.isnan().any()


def test_a_label_that_is_no_class_is_told(device):
    if device.type == "cuda":
        pytest.skip("the assertion ends the process's use of the GPU")
    logits, labels = problem(device, 1, 3, (2, 2), (3, 3))
    for wrong in (3, -1, 2**40):
        labels[0, 1, 2] = wrong
        with pytest.raises(RuntimeError, match="classes 0 to 2"):
            kernels.forward(logits, labels, None, 255, False, True)


def test_full_size_logits_are_not_allocated(device, host_bytes, monkeypatch):
    monkeypatch.undo()
    logits = torch.empty(2, 19, 128, 128, device=device)
    labels = torch.zeros(2, 512, 512, dtype=torch.int64, device=device)
    total = host_bytes(kernels.forward, logits, labels, None, 255, False, True)
    pixels = labels.numel()
    # slope and log-sums; eager keeps logits, log-softmax and a gradient of 76 bytes a pixel each
    assert total <= (4 * 19 / 16 + 4 + 0.2) * pixels
    assert total + logits.nbytes <= 0.15 * 3 * 76 * pixels


def test_host_waits_for_no_value(device, needs_no_value):
    logits, labels = problem(device, 1, 3, (2, 2), (3, 3))
    weights = torch.rand(labels.shape, device=device)
    for average in (False, True):
        needs_no_value(kernels.forward, logits, labels, weights, 255, average, True)
