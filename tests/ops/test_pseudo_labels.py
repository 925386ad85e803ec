# SPDX-License-Identifier: Apache-2.0
"""The banded labels against upsample-then-softmax, and what the op promises."""

import pytest
import torch
from torch.library import opcheck

from pipa_fast import ops
from pipa_fast.ops import _bands
from pipa_fast.reference.pseudo_labels import pseudo_labels as reference


@pytest.mark.parametrize("elements", [1, 2**20])
@pytest.mark.parametrize(
    ("small", "full"), [((4, 6), (16, 24)), ((5, 7), (13, 30)), ((6, 5), (6, 5)), ((8, 9), (3, 5))]
)
def test_values(monkeypatch, small, full, elements):
    monkeypatch.setattr(_bands, "ELEMENTS_CPU", elements)
    logits = 3 * torch.randn(3, 5, *small, dtype=torch.float64)
    labels, confidence, share = ops.pseudo_labels(logits, size=full, threshold=0.8)
    expected = reference(logits, size=full, threshold=0.8)
    assert labels.shape == confidence.shape == (3, *full) and labels.dtype == torch.int64
    assert torch.equal(labels, expected[0])
    torch.testing.assert_close(confidence, expected[1])
    torch.testing.assert_close(share, expected[2])
    assert 0 < share < 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_are_widened_first(dtype):
    logits = (3 * torch.randn(2, 5, 4, 4)).to(dtype).requires_grad_()
    labels, confidence, share = ops.pseudo_labels(logits, size=(8, 8), threshold=0.5)
    exact = reference(logits.double(), size=(8, 8), threshold=0.5)
    assert confidence.dtype == share.dtype == torch.float32 and not confidence.requires_grad
    assert torch.equal(labels, exact[0])
    torch.testing.assert_close(confidence.double(), exact[1], rtol=1e-5, atol=1e-6)


def test_threshold_is_inclusive():
    logits = torch.zeros(1, 2, 2, 2)
    assert ops.pseudo_labels(logits, size=(2, 2), threshold=0.5)[2] == 1
    assert ops.pseudo_labels(logits, size=(2, 2), threshold=0.51)[2] == 0


def test_opcheck_and_compile():
    for images in (2, 0):
        logits = torch.randn(images, 5, 3, 4)
        opcheck(torch.ops.pipa_fast.pseudo_labels.default, (logits, 6, 8, 0.9))

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
        ("threshold", logits, {"threshold": 1.5}),
    ]
    for name, given, settings in bad:
        with pytest.raises(ValueError, match=name):
            ops.pseudo_labels(given, **{"size": (6, 8), "threshold": 0.9, **settings})
