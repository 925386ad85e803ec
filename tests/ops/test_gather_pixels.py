# SPDX-License-Identifier: Apache-2.0
"""Pixels as unit rows: values, gradient, and rows that stand for no pixel."""

import pytest
import torch
from torch.autograd import gradcheck

from pipa_fast import ops
from pipa_fast.reference.gather_pixels import gather_pixels as reference


@pytest.mark.parametrize("normalize", [True, False])
def test_values_and_gradient(normalize):
    features = torch.randn(2, 5, 3, 4, dtype=torch.float64).requires_grad_()
    index = torch.tensor([0, 23, 5, 5, -1, 12])
    rows = ops.gather_pixels(features, index, normalize=normalize)
    torch.testing.assert_close(rows, reference(features, index, normalize), rtol=0, atol=1e-15)
    assert rows[4].abs().max() == 0
    if normalize:
        torch.testing.assert_close(rows[[0, 1, 2]].norm(dim=1), torch.ones(3).double())
    gradcheck(lambda f: ops.gather_pixels(f, index, normalize=normalize), features)


def test_coordinates_come_back():
    y, x = torch.meshgrid(torch.arange(6.0), torch.arange(7.0), indexing="ij")
    features = torch.stack((y, x)).expand(3, 2, 6, 7) + 100 * torch.arange(3.0)[:, None, None, None]
    rows = ops.gather_pixels(features, torch.arange(3 * 6 * 7), normalize=False)
    assert torch.equal(rows.view(3, 6, 7, 2).permute(0, 3, 1, 2), features)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes_and_layouts(dtype):
    features = torch.randn(2, 8, 4, 4).to(dtype)
    index = torch.randint(0, 32, (20,), dtype=torch.int32)
    rows = ops.gather_pixels(features, index)
    assert rows.dtype == dtype
    torch.testing.assert_close(
        rows.double(), reference(features.double(), index), rtol=torch.finfo(dtype).eps, atol=1e-7
    )
    last = features.to(memory_format=torch.channels_last)
    assert torch.equal(ops.gather_pixels(last, index), rows)


def test_empty():
    features = torch.randn(2, 8, 4, 4).requires_grad_()
    assert ops.gather_pixels(features, torch.zeros(0, dtype=torch.int64)).shape == (0, 8)
    nothing = torch.randn(0, 8, 4, 4).requires_grad_()
    rows = ops.gather_pixels(nothing, torch.full((3,), -1))
    rows.sum().backward()
    assert rows.shape == (3, 8) and rows.abs().max() == 0 and nothing.grad is not None


def test_nan_of_pixels_that_are_not_taken_reaches_no_gradient():
    features = torch.randn(1, 4, 3, 3)
    features[0, :, 0, 0] = torch.nan
    features.requires_grad_()
    ops.gather_pixels(features, torch.tensor([5, -1, 7])).sum().backward()
    assert features.grad.isfinite().all() and features.grad.any()


def test_compile():
    features, index = torch.randn(2, 8, 4, 4), torch.tensor([3, -1, 31])
    compiled = torch.compile(ops.gather_pixels, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(features, index), ops.gather_pixels(features, index))


def test_bad_arguments():
    features, index = torch.randn(2, 8, 4, 4), torch.arange(4)
    bad = [
        ("features", (features[0], index)),
        ("features", (features.long(), index)),
        ("index", (features, index[None])),
        ("index", (features, index.float())),
    ]
    for name, args in bad:
        with pytest.raises(ValueError, match=name):
            ops.gather_pixels(*args)
