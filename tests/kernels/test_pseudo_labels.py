# SPDX-License-Identifier: Apache-2.0
"""kernels/pseudo_labels against upsampling, softmax and maximum in float64."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")
from pipa_fast.kernels import pseudo_labels as kernels
from pipa_fast.kernels._launch import Tile

SIZES = [
    (2, 5, (2, 5), (3, 18)),
    (1, 19, (3, 4), (5, 7)),
    (1, 4, (7, 9), (4, 5)),
    (2, 1, (2, 3), (4, 4)),
    (1, 3, (1, 4), (3, 9)),
    (1, 3, (1, 1), (2, 3)),
    (1, 3, (3, 3), (1, 1)),
]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Several blocks of classes and pixels even in small maps."""
    monkeypatch.setattr(kernels, "TILE", Tile(4, 16, 4, 1))


def check(logits, full, threshold=0.6):
    labels, confidence, share = kernels.forward(logits, *full, threshold)
    exact = F.interpolate(logits.double(), full, mode="bilinear", align_corners=False).softmax(1)
    odds, _ = exact.max(1)
    assert labels.dtype == torch.int64 and confidence.dtype == share.dtype == torch.float32
    torch.testing.assert_close(confidence.double(), odds, rtol=2e-6, atol=0)
    own = exact.gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(own, odds, rtol=1e-5, atol=0)
    torch.testing.assert_close(share, (confidence >= threshold).float().mean())
    return labels, confidence, share


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_labels_confidence_and_share(device, size, dtype):
    images, classes, small, full = size
    check((3 * torch.randn(images, classes, *small)).to(device, dtype), full)


def test_shipped_tile(device, monkeypatch):
    monkeypatch.undo()
    check(torch.randn(1, 19, 3, 40).to(device), (5, 150))


def test_ties_go_to_the_first_class(device):
    labels, confidence, _ = check(torch.zeros(1, 6, 2, 2, device=device), (3, 3), 1 / 6)
    assert not labels.any() and (confidence == confidence[0, 0, 0]).all()
    late = torch.zeros(1, 6, 2, 2, device=device)
    late[:, 3] = late[:, 5] = 1
    assert (check(late, (3, 3))[0] == 3).all()


def test_thresholds_at_both_ends(device):
    logits = torch.zeros(1, 1, 2, 2, device=device)
    assert check(logits, (3, 3), 1.0)[2] == 1  # one class has all the odds
    logits = torch.randn(1, 4, 2, 2, device=device)
    assert check(logits, (3, 3), 0.0)[2] == 1
    assert check(logits, (3, 3), 1.0)[2] == 0


def test_nan_is_not_hidden(device):
    logits = torch.randn(1, 4, 2, 2, device=device)
    logits[0, 2, 0, 0] = torch.nan
    assert kernels.forward(logits, 2, 2, 0.5)[1][0, 0, 0].isnan()


def test_no_images(device):
    labels, confidence, share = kernels.forward(torch.empty(0, 3, 2, 2, device=device), 4, 5, 0.5)
    assert labels.shape == confidence.shape == (0, 4, 5) and share == 0


def test_full_size_logits_are_not_allocated(device, host_bytes, monkeypatch):
    monkeypatch.undo()
    logits = torch.empty(2, 19, 128, 128, device=device)
    total = host_bytes(kernels.forward, logits, 512, 512, 0.9)
    pixels = 2 * 512 * 512
    # labels and confidence; eager keeps logits and softmax of 76 bytes a pixel each
    assert total <= (8 + 4 + 0.2) * pixels
    assert total <= 0.15 * 2 * 76 * pixels


def test_host_waits_for_no_value(device, needs_no_value):
    needs_no_value(kernels.forward, torch.randn(1, 3, 2, 2, device=device), 5, 7, 0.9)
