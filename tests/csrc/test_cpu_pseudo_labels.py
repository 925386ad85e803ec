# SPDX-License-Identifier: Apache-2.0
"""csrc/cpu/pseudo_labels against the equation in float64, on each instruction set here."""

import pytest
import torch
import torch.nn.functional as F

# Images, classes, and the sizes of the map and of the labels. Vectors hold 4, 8 or 16 pixels.
SIZES = [
    (2, 19, (8, 16), (32, 64)),
    (2, 19, (5, 7), (23, 31)),
    (1, 19, (9, 6), (9, 6)),
    (1, 5, (17, 70), (6, 11)),
    (3, 1, (3, 4), (7, 9)),
    (2, 2, (4, 5), (33, 18)),
    (1, 150, (3, 6), (11, 25)),
    (1, 6, (1, 9), (5, 20)),
    (1, 6, (9, 1), (20, 5)),
    (2, 6, (1, 1), (3, 2)),
]


def check(native, isa, logits, full, threshold=0.7):
    labels, confidence, share = native.pseudo_labels(logits, *full, threshold, isa)
    wide = F.interpolate(logits.double(), full, mode="bilinear", align_corners=False)
    odds = wide.softmax(1)
    assert labels.dtype == torch.int64 and labels.shape == confidence.shape == odds[:, 0].shape
    rounding = max(2e-6, torch.finfo(torch.float32).eps * float(logits.abs().max()))
    torch.testing.assert_close(confidence.double(), odds.max(1).values, rtol=rounding, atol=0)
    # rounding may decide between two classes that are as likely
    first, second = odds.topk(2, dim=1).values.unbind(1)
    sure = first - second > rounding
    assert sure.any() and torch.equal(labels[sure], odds.argmax(1)[sure])
    torch.testing.assert_close(share, (confidence >= threshold).float().mean())
    return labels, confidence, share


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_labels_and_confidence_are_the_equation(native, isa, size):
    images, classes, small, full = size
    logits = 3 * torch.randn(images, classes, *small)
    if classes == 1:
        labels, confidence, share = native.pseudo_labels(logits, *full, 1.0, isa)
        assert not labels.any() and (confidence == 1).all() and share == 1
        return
    check(native, isa, logits, full)
    check(native, isa, 1e4 * logits, full)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types_are_converted_exactly(native, isa, dtype):
    logits = (3 * torch.randn(2, 19, 5, 9)).to(dtype)
    half = native.pseudo_labels(logits, 20, 33, 0.7, isa)
    full = native.pseudo_labels(logits.float(), 20, 33, 0.7, isa)
    assert all(torch.equal(a, b) for a, b in zip(half, full, strict=True))


def test_small_halves_are_no_denormal_floats(native, isa):
    """They are normal numbers as floats, which torch.set_flush_denormal leaves as they are."""
    logits = torch.full((1, 2, 2, 2), 6e-5, dtype=torch.float16)
    logits[:, 1] = 0
    assert torch.set_flush_denormal(True)
    try:
        half, full = (native.pseudo_labels(t, 2, 2, 0.5, isa)[1] for t in (logits, logits.float()))
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(half, full) and (half > 0.5).all()


def test_threads_do_not_change_a_bit(native, isa, threads):
    logits = 3 * torch.randn(2, 19, 33, 20)
    results = []
    for count in (1, 2, 3, 1):
        threads(count)
        results.append(native.pseudo_labels(logits, 66, 80, 0.7, isa))
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_the_threshold_is_float32s(native, isa):
    logits = torch.zeros(1, 10, 3, 4)  # whose odds are 0.1 as float32, above 0.1 as float64
    assert native.pseudo_labels(logits, 6, 8, 0.1, isa)[2] == 1


def test_nan_is_not_hidden(native, isa):
    for k in (0, 3):
        logits = torch.randn(1, 5, 6, 7)
        logits[0, k, 3, 3] = torch.nan
        labels, confidence, _ = native.pseudo_labels(logits, 12, 14, 0.5, isa)
        assert confidence[0, 6, 6].isnan() and confidence[0, 0, 0].isfinite()
        assert (labels >= 0).all() and (labels < 5).all()


def test_wrong_arguments_are_refused(native):
    logits = torch.randn(2, 5, 4, 6)
    for match, change in (
        ("logits must be a contiguous CPU tensor", {"logits": logits[0]}),
        ("logits must be float32", {"logits": logits.double()}),
        ("logits must have K, h, w > 0", {"logits": logits[:, :0]}),
        ("size must not be negative", {"height": -1}),
        ("shorter than", {"width": 2**40}),
        ("isa must be", {"isa": "neon"}),
    ):
        given = {"logits": logits, "height": 8, "width": 12, "threshold": 0.5, "isa": ""}
        with pytest.raises(RuntimeError, match=match):
            native.pseudo_labels(*(given | change).values())
