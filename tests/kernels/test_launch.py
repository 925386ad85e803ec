# SPDX-License-Identifier: Apache-2.0
"""kernels/_launch: which tile, how deep, how precise."""

import pytest
import torch

pytest.importorskip("triton")
from pipa_fast.kernels import _launch
from pipa_fast.kernels._launch import Tile, TileRow

SMALL, DEEP, WIDE = Tile(64, 64, 4, 2), Tile(64, 32, 4, 2), Tile(32, 32, 4, 1)
TABLE = (
    TileRow(90, 128, 2, SMALL, "fits twice"),
    TileRow(90, 512, 2, DEEP, "no spills"),
    TileRow(90, 512, 4, WIDE, "no spills"),
)


def test_first_row_that_fits_is_taken():
    for depth, dtype, tile in (
        (16, torch.float16, SMALL),
        (128, torch.bfloat16, SMALL),
        (256, torch.bfloat16, DEEP),
        (16, torch.float32, WIDE),
    ):
        assert _launch.choose_tile(TABLE, 90, depth, dtype) == tile
    with pytest.raises(AssertionError, match="no tile"):
        _launch.choose_tile(TABLE, 80, 16, torch.float16)


def test_chips_share_tiles_with_their_like():
    # Shared memory of a block, CUDA C++ programming guide: 163, 99 or 227 KiB.
    like = {80: 80, 87: 80, 86: 89, 89: 89, 90: 90, 100: 90, 103: 90, 120: 89, 121: 89}
    assert {capability: _launch.chip(capability) for capability in like} == like
    assert _launch.capability(torch.device("cpu")) in _launch.SHARED_MEMORY


def test_depth_is_padded():
    padded = {1: 16, 8: 16, 16: 16, 17: 32, 64: 64, 96: 128, 192: 256, 384: 512, 512: 512}
    assert {depth: _launch.padded_depth(depth) for depth in padded} == padded


def test_tf32_is_what_torch_allows():
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    ways = {
        "tf32": [
            lambda: setattr(matmul, "allow_tf32", True),
            lambda: torch.set_float32_matmul_precision("high"),
            lambda: setattr(matmul, "fp32_precision", "tf32"),
        ],
        "ieee": [
            lambda: setattr(matmul, "fp32_precision", "ieee"),
            lambda: setattr(matmul, "allow_tf32", False),
            lambda: torch.set_float32_matmul_precision("highest"),
        ],
    }
    try:
        assert _launch.precision(torch.float32) == ("tf32" if before == "tf32" else "ieee")
        for expected, setters in ways.items():
            for allow in setters:
                allow()
                assert _launch.precision(torch.float32) == expected
                assert _launch.precision(torch.float16) == "ieee"
    finally:
        torch.set_float32_matmul_precision("highest")
        matmul.fp32_precision = before


def test_an_empty_grid_starts_nothing():
    _launch.launch(None, (0, 3), SMALL)
