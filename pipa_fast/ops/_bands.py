# SPDX-License-Identifier: Apache-2.0
"""Bilinear upsampling of a map one band of rows at a time, and its transpose."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Elements of an upsampled band: on a CPU 4 MB in float32, which a cache may hold; elsewhere 64 MB,
# so that launches are few.
ELEMENTS_CPU = 2**20
ELEMENTS = 2**24


class Band(NamedTuple):
    """Rows of the upsampled map, and the rows of the map that they come from."""

    rows: slice  # of the upsampled map
    source: slice  # of the map
    mix: Tensor  # [rows, source rows] their shares


def bands(shape: torch.Size, size: tuple[int, int], like: Tensor) -> Iterator[Band]:
    """Cut the upsampling of maps [B, K, h, w] to `size` into bands of some MB.

    `like` gives the shares their dtype and device. The convention is that of align_corners=False.
    """
    images, channels, height, _ = shape
    elements = ELEMENTS_CPU if like.device.type == "cpu" else ELEMENTS
    step = max(1, elements // max(1, images * channels * size[1]))
    for start in range(0, size[0], step):
        rows = slice(start, min(start + step, size[0]))
        first = _above(start, height, size[0])
        source = slice(first, min(_above(rows.stop - 1, height, size[0]) + 2, height))
        out = torch.arange(rows.start, rows.stop, device=like.device, dtype=like.dtype)
        at = ((out + 0.5) * (height / size[0]) - 0.5).clamp(0, height - 1)
        place = torch.arange(source.start, source.stop, device=like.device, dtype=like.dtype)
        yield Band(rows, source, (1 - (at[:, None] - place).abs()).clamp(min=0))


def _above(row: int, height: int, full: int) -> int:
    """Return the map's row at or above an upsampled row's centre; exact, by integers."""
    return min(max(((2 * row + 1) * height - full) // (2 * full), 0), height - 1)


def upsample(maps: Tensor, band: Band, width: int) -> Tensor:
    """Return a band [B, K, rows, W] of the upsampled maps [B, K, h, w]."""
    rows = band.mix @ maps[:, :, band.source].to(band.mix.dtype)
    return F.interpolate(rows, (rows.shape[2], width), mode="bilinear", align_corners=False)


def upsample_transposed(slope: Tensor, band: Band, width: int) -> Tensor:
    """Return what `upsample` hands back [B, K, source rows, w] for a slope [B, K, rows, W]."""
    images, channels, rows, full = slope.shape
    narrow = torch.ops.aten.upsample_bilinear2d_backward(
        slope, [rows, full], [images, channels, rows, width], False
    )
    return band.mix.T @ narrow
