# SPDX-License-Identifier: Apache-2.0
"""Tiles of pixel contrast's Triton kernels."""

from pipa_fast.kernels._launch import Tile, TileRow

APART = tuple(TileRow(c, 512, w, Tile(64, 32, 4, 2), "") for c in (80, 89, 90) for w in (2, 4))
MIXED = tuple(TileRow(c, 512, w, Tile(32, 32, 4, 2), "") for c in (80, 89, 90) for w in (2, 4))
PULL = GRADIENT = MIXED
