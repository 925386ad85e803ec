# SPDX-License-Identifier: Apache-2.0
"""The labels on each backend against upsample-then-softmax, and what the op promises."""

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

from pipa_fast import ops

BACKENDS = ops.backends("pseudo_labels", "cpu")
SIZES = [
    ((4, 6), (16, 24)),
    ((5, 7), (13, 30)),
    ((6, 5), (6, 5)),
    ((8, 9), (3, 5)),
    ((1, 1), (4, 3)),
]


@pytest.fixture(autouse=True, params=BACKENDS)
def backend(request, monkeypatch):
    monkeypatch.setenv("PIPA_FAST_BACKEND", request.param)
    return request.param


def truth(logits, size, threshold):
    full = F.interpolate(logits.double(), size, mode="bilinear", align_corners=False)
    confidence, labels = full.softmax(1).max(1)
    return labels, confidence, (confidence >= threshold).double().mean()


@pytest.mark.parametrize(("small", "full"), SIZES)
def test_values(small, full):
    logits = 3 * torch.randn(3, 5, *small)
    labels, confidence, share = ops.pseudo_labels(logits, size=full, threshold=0.8)
    expected = truth(logits, full, 0.8)
    assert labels.shape == confidence.shape == (3, *full) and labels.dtype == torch.int64
    assert torch.equal(labels, expected[0])
    torch.testing.assert_close(confidence.double(), expected[1], rtol=2e-6, atol=0)
    torch.testing.assert_close(share.double(), expected[2])
    assert 0 < share < 1


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str
)
def test_dtypes_are_widened_first(dtype, monkeypatch):
    if dtype == torch.float64:
        monkeypatch.delenv("PIPA_FAST_BACKEND")  # the reference's own
    logits = (3 * torch.randn(2, 5, 4, 4, dtype=torch.float64)).to(dtype).requires_grad_()
    labels, confidence, share = ops.pseudo_labels(logits, size=(8, 8), threshold=0.5)
    exact = truth(logits, (8, 8), 0.5)
    wide = torch.promote_types(dtype, torch.float32)
    assert confidence.dtype == share.dtype == wide and not confidence.requires_grad
    assert torch.equal(labels, exact[0])
    rtol = 1e-14 if dtype == torch.float64 else 2e-6
    torch.testing.assert_close(confidence.double(), exact[1], rtol=rtol, atol=0)


def test_threshold_is_inclusive():
    logits = torch.zeros(1, 2, 2, 2)
    assert ops.pseudo_labels(logits, size=(2, 2), threshold=0.5)[2] == 1
    assert ops.pseudo_labels(logits, size=(2, 2), threshold=0.51)[2] == 0


def test_of_equal_classes_the_first_is_taken():
    logits = torch.randn(1, 1, 3, 4).expand(1, 6, 3, 4)
    labels, confidence, _ = ops.pseudo_labels(logits, size=(5, 9), threshold=0.5)
    assert not labels.any()
    torch.testing.assert_close(confidence, torch.full((1, 5, 9), 1 / 6))


def test_nan_is_not_hidden():
    logits = torch.randn(1, 5, 3, 4)
    logits[0, 3] = torch.nan
    labels, confidence, share = ops.pseudo_labels(logits, size=(6, 8), threshold=0.0)
    assert confidence.isnan().all() and (labels >= 0).all() and (labels < 5).all() and share == 0


def test_opcheck_and_compile(backend):
    for images in (2, 0):
        logits = torch.randn(images, 5, 3, 4)
        opcheck(torch.ops.pipa_fast.pseudo_labels.default, (logits, 6, 8, 0.9, backend))

    def label(logits):
        return ops.pseudo_labels(logits, size=(6, 8), threshold=0.9)

    logits = torch.randn(2, 5, 3, 4)
    got = torch.compile(label, fullgraph=True, backend="aot_eager")(logits)
    for a, b in zip(got, label(logits), strict=True):
        torch.testing.assert_close(a, b)


def test_bad_arguments():
    logits = torch.randn(2, 5, 3, 4)
    bad = [
        ("logits", logits[0], {}),
        ("logits", logits.long(), {}),
        ("size", logits, {"size": (0, 4)}),
        ("size", logits, {"size": (4, 4.0)}),
        ("size", logits, {"size": (4, 4, 4)}),
        ("size", logits, {"size": 16}),
        ("size", logits, {"size": None}),
        ("threshold", logits, {"threshold": 1.5}),
        ("threshold", logits, {"threshold": None}),
    ]
    for name, given, settings in bad:
        with pytest.raises(ValueError, match=name):
            ops.pseudo_labels(given, **{"size": (6, 8), "threshold": 0.9, **settings})
