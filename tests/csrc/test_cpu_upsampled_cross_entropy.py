# SPDX-License-Identifier: Apache-2.0
"""csrc/cpu/upsampled_cross_entropy against the equation in float64, on each instruction set."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.equations import upsampled_cross_entropy as truth

# Images, classes, and the sizes of the map and of the labels. Vectors hold 4, 8 or 16 pixels.
SIZES = [
    (2, 19, (8, 16), (32, 64)),  # whole vectors
    (2, 19, (5, 7), (23, 31)),
    (1, 19, (9, 6), (9, 6)),  # nothing to enlarge
    (1, 5, (17, 70), (6, 11)),  # downscaling
    (1, 4, (40, 3), (7, 50)),
    (1, 3, (2, 150), (5, 3)),
    (3, 1, (3, 4), (7, 9)),  # one class: no loss
    (2, 2, (4, 5), (33, 18)),
    (1, 150, (3, 6), (11, 25)),
    (1, 6, (1, 9), (5, 20)),  # a single row, column, cell, pixel
    (1, 6, (9, 1), (20, 5)),
    (2, 6, (1, 1), (3, 2)),
    (1, 6, (4, 4), (1, 1)),
    (70, 3, (3, 2), (5, 4)),  # more images than tasks are wanted
]


def problem(images, classes, small, full, dtype=torch.float32):
    logits = (3 * torch.randn(images, classes, *small)).to(dtype)
    labels = torch.randint(0, classes, (images, *full))
    labels[torch.rand(labels.shape) < 0.2] = 255
    return logits, labels


def check(native, isa, logits, labels, weights=None, ignore_index=255, all_pixels=False):
    arguments = (weights, ignore_index, all_pixels)
    loss, slope = native.upsampled_cross_entropy_forward(logits, labels, *arguments, True, isa)
    expected, expected_slope = truth(logits, labels, *arguments)
    size, eps = expected_slope.norm(), torch.finfo(torch.float32).eps
    rounding = max(2e-6, eps * float(logits.abs().max()))  # of the logits on their way
    torch.testing.assert_close(loss.double(), expected, rtol=rounding, atol=rounding / 10)
    close = {"rtol": 50 * rounding, "atol": float(rounding * size) + 1e-8}
    torch.testing.assert_close(slope.double(), expected_slope, **close)
    assert (slope.double() - expected_slope).norm() <= rounding * size + 1e-8
    if size > 1e-6:
        cosine = F.cosine_similarity(slope.double().flatten(), expected_slope.flatten(), dim=0)
        assert cosine > 1 - 1e-8
    alone, none = native.upsampled_cross_entropy_forward(logits, labels, *arguments, False, isa)
    assert torch.equal(alone, loss) and none.numel() == 0
    return loss, slope


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_loss_and_gradient_are_the_equation(native, isa, size):
    logits, labels = problem(*size)
    check(native, isa, logits, labels)
    check(native, isa, logits, labels, torch.rand(labels.shape), all_pixels=True)
    check(native, isa, logits, labels, (torch.rand(labels.shape) > 0.7).float())


@pytest.mark.parametrize("average", [False, True], ids=["valid", "all"])
def test_what_is_ignored(native, isa, average):
    logits, labels = problem(2, 5, (6, 7), (24, 30))
    for ignore_index in (-100, -1, 3, 255, 2**40):
        own = labels.masked_fill(labels == 255, ignore_index)
        check(native, isa, logits, own, None, ignore_index, average)
        nothing = torch.full_like(own, ignore_index)
        loss, slope = check(native, isa, logits, nothing, None, ignore_index, average)
        assert loss == 0 and not slope.any()
    # what lies under pixels that are ignored reaches nobody
    labels[:, 8:] = 255
    weights = torch.rand(labels.shape)
    weights[labels == 255] = torch.nan
    loss, slope = native.upsampled_cross_entropy_forward(
        logits, labels, weights, 255, average, True, isa
    )
    expected, expected_slope = truth(logits, labels, weights.nan_to_num(0), 255, average)
    torch.testing.assert_close(loss.double(), expected, rtol=2e-6, atol=1e-7)
    assert (slope.double() - expected_slope).norm() <= 2e-6 * expected_slope.norm()


@pytest.mark.parametrize("scale", [1e-3, 30.0, 1e4])
def test_logits_of_any_size(native, isa, scale):
    logits, labels = problem(2, 19, (5, 6), (20, 27))
    check(native, isa, logits * scale, labels)
    check(native, isa, logits * scale + 1000.0, labels)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types_are_converted_exactly(native, isa, dtype):
    logits, labels = problem(2, 19, (5, 9), (20, 33), dtype)
    settings = (None, 255, False, True, isa)
    half = native.upsampled_cross_entropy_forward(logits, labels, *settings)
    full = native.upsampled_cross_entropy_forward(logits.float(), labels, *settings)
    assert all(torch.equal(a, b) for a, b in zip(half, full, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_errs_no_more_than_plain_torch(native, isa, dtype):
    for size in ((2, 19, (16, 32), (64, 128)), (1, 19, (11, 13), (37, 50))):
        logits, labels = problem(*size, dtype)
        expected, expected_slope = truth(logits, labels, None, 255, False)
        plain = logits.clone().requires_grad_()
        full = F.interpolate(plain, labels.shape[1:], mode="bilinear", align_corners=False)
        plain_loss = F.cross_entropy(full, labels, ignore_index=255)
        plain_loss.backward()
        loss, slope = native.upsampled_cross_entropy_forward(
            logits, labels, None, 255, False, True, isa
        )
        error = (slope.to(dtype).double() - expected_slope).norm() / expected_slope.norm()
        plain_error = (plain.grad.double() - expected_slope).norm() / expected_slope.norm()
        assert error <= 1.1 * plain_error + 1e-7
        loss_error = (loss.double() - expected).abs()
        assert loss_error <= 1.1 * (plain_loss.double() - expected).abs() + 3e-7 * expected


def test_threads_do_not_change_a_bit(native, isa, threads):
    for size in ((2, 19, (33, 20), (66, 80)), (1, 5, (150, 9), (301, 17))):
        logits, labels = problem(*size)
        results = []
        for count in (1, 2, 3, 1):
            threads(count)
            results.append(
                native.upsampled_cross_entropy_forward(logits, labels, None, 255, False, True, isa)
            )
        for result in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))
        check(native, isa, logits, labels)


def test_nan_is_not_hidden(native, isa):
    logits, labels = problem(1, 5, (6, 7), (24, 28))
    for k in (0, 3):
        bad = logits.clone()
        bad[0, k, 3, 3] = torch.nan
        loss, slope = native.upsampled_cross_entropy_forward(
            bad, labels, None, 255, False, True, isa
        )
        assert loss.isnan() and slope.isnan().any()


def test_wrong_arguments_are_refused(native):
    logits, labels = problem(2, 5, (4, 6), (8, 12))

    def refused(match: str, *tensors: Tensor | None, isa: str = ""):
        given = [*tensors, *(logits, labels, None)[len(tensors) :]]
        with pytest.raises(RuntimeError, match=match):
            native.upsampled_cross_entropy_forward(*given, 255, False, True, isa)

    refused("logits must be a contiguous CPU tensor", logits[0])
    refused("logits must be a contiguous CPU tensor", logits.transpose(2, 3))
    refused("logits must be float32", logits.double())
    refused("logits must have K, h, w > 0", logits[:, :0])
    refused("labels must be", logits, labels[0])
    refused("labels must be", logits, labels[:1])
    refused("labels must be", logits, labels.int())
    refused("weights must be", logits, labels, torch.ones(2, 8, 11))
    refused("weights must be", logits, labels, torch.ones(2, 8, 12).double())
    refused("isa must be", isa="neon")
    for wrong in (5, 2**33, -1):
        labels[1, 7, 11] = wrong
        refused(f"classes 0 to 4 or ignore_index 255, got {wrong}")
