# SPDX-License-Identifier: Apache-2.0
"""Pixel contrast in Triton: which kernels run, on what. The formulas are those of the reference.

Rows are sorted by class on the device, so that a tile of rows shares classes with one range of
columns. Elsewhere, in all but a few tiles, nothing is masked. e_ij is symmetric: the forward pass
computes it once for both rows. Nothing here waits for the device, and grids depend on N alone.
"""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from pipa_fast.kernels import _launch
from pipa_fast.kernels import _pixel_contrast_backward as pull
from pipa_fast.kernels import _pixel_contrast_forward as push
from pipa_fast.kernels import _pixel_contrast_rows as rows
from pipa_fast.kernels._launch import LOG2E, Tile, choose_tile, padded_depth
from pipa_fast.kernels._pixel_contrast_tiles import APART, FEW, GRADIENT, MIXED, PULL
from pipa_fast.reference import _float16
from pipa_fast.reference._rows import DEAD, class_keys

# Up to here the passes over all tiles take less time than the launches that would spare them.
FEW_ROWS = 4096
ALIGNED_ROWS = 128  # every tile divides it
PARTS = 8  # programs that share the tiles of one class: a mixed tile may meet all others
RUN = 8  # shifts of a program, which loads its own rows once
SORT_TILE = Tile(16, 0, 4, 1)  # a program's registers hold 16 rows of any depth
SUM_TILE = Tile(32, 32, 4, 1)  # rows and columns of the features
FINISH_TILE = Tile(128, 0, 4, 1)


class Rows(NamedTuple):
    """Rows sorted by class, [N padded] each, ignored ones last and 0."""

    x: Tensor  # [N padded, D padded]
    first: Tensor  # int32, where the row's class begins
    past: Tensor  # int32, and ends
    z: Tensor
    share: Tensor  # an anchor's weight
    pair: Tensor  # and that for each of its positives
    u: Tensor
    order: Tensor  # int64 [N], the row that it was
    live: Tensor  # int32 [], how many take part
    keys: Tensor  # int64 [N], ascending, DEAD where ignored; labels as they are where they are few


def _sort(
    features: Tensor,
    labels: Tensor,
    weights: Tensor | None,
    ignore_index: int,
    saved: tuple[Tensor, Tensor] | None = None,
    largest_share: float = 1.0,
    counting: bool = True,
) -> Rows:
    """Sort rows by class, where they are few by counting, which is one launch.

    With what the forward pass saved, for float16, shares and u are scaled to the largest share.
    """
    n, d = features.shape
    depth, padded = padded_depth(d), triton.cdiv(n, ALIGNED_ROWS) * ALIGNED_ROWS
    few = counting and n <= FEW_ROWS
    if few:
        keys, dead_key, order = labels.contiguous(), ignore_index, labels.new_empty(n)
    else:
        dead_key = DEAD
        keys, order = torch.sort(class_keys(labels, ignore_index), stable=True)
    integers = labels.new_empty((2, padded), dtype=torch.int32)
    floats = features.new_empty((4, padded), dtype=torch.float32)
    known = *integers.unbind(), *floats.unbind()
    x, live = features.new_empty((padded, depth)), labels.new_empty((), dtype=torch.int32)
    z, u = saved or (None, None)
    _launch.launch(
        rows.sort_rows_kernel,
        (padded // SORT_TILE.block_m,),
        SORT_TILE,
        features, keys, order, None if weights is None else weights.contiguous(),
        z, u, x, *known, live, n, d, *features.stride(), n.bit_length(), dead_key,
        D=depth, BLOCK_M=SORT_TILE.block_m, RANK=few,
    )  # fmt: skip
    sort = Rows(x, *known, order, live, keys)
    if largest_share != 1:
        largest = 1 if weights is None else sort.share.amax().clamp(min=1e-30)
        floats[1:] *= largest_share / largest  # not z, which is the first
    return sort


def forward(
    features: Tensor,  # [N, D]
    labels: Tensor,  # [N] int64
    weights: Tensor | None,  # [N] float32
    temperature: float,
    denominator: str,
    ignore_index: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss [], Z [N], and u [N] times the sum of the anchors' weights."""
    n, all_form = features.shape[0], denominator == "all"
    z = features.new_empty(n, dtype=torch.float32)
    u = torch.empty_like(z)  # outputs of an op may not share memory
    if n == 0:
        return features.new_zeros((), dtype=torch.float32), z, u
    with _launch.on_device(features):
        sort = _sort(features, labels, weights, ignore_index)
        scale = LOG2E / temperature
        if n <= FEW_ROWS:
            totals = _few_rows(sort, z, u, scale, all_form)
        else:
            sums = _denominators(sort, n, features.shape[1], scale, all_form)
            parts = _class_cosines(sort, n) if all_form else _positives(sort, sums, n, scale)
            totals = features.new_empty((2, triton.cdiv(n, 128)), dtype=torch.float32)
            _launch.launch(
                push.finish_kernel,
                totals.shape[1:],
                FINISH_TILE,
                sort.first, sort.past, sort.live, sort.share, sort.pair, sort.order, sums, parts,
                z, u, totals, n, sums.shape[0], scale,
                PARTS=parts.shape[0] if all_form else parts.shape[0] // 2,
                ALL=all_form, BLOCK_M=FINISH_TILE.block_m,
            )  # fmt: skip
        loss, shares = totals.sum(1)
        return loss / shares.clamp(min=1e-38), z, u


def _few_rows(sort: Rows, z: Tensor, u: Tensor, scale: float, all_form: bool) -> Tensor:
    """Fill z and u in one launch, and return the sums [2, programs] of losses and of shares."""
    n, depth = z.shape[0], sort.x.shape[1]
    tile = _tile(FEW, sort.x)
    totals = z.new_empty((2, triton.cdiv(n, tile.block_m)))
    _launch.launch(
        push.few_rows_kernel,
        totals.shape[1:],
        tile,
        sort.x, sort.first, sort.past, sort.live, sort.share, sort.pair, sort.order,
        z, u, totals, n, scale,
        ALL=all_form, D=depth, BLOCK_M=tile.block_m, BLOCK_N=tile.block_n,
        PRECISION=_launch.precision(sort.x.dtype),
    )  # fmt: skip
    return totals


def _denominators(sort: Rows, n: int, d: int, scale: float, all_form: bool) -> Tensor:
    """Return Z of the sorted rows [N padded]."""
    (padded, depth), tile, mixed = sort.x.shape, _tile(APART, sort.x), _tile(MIXED, sort.x)
    tiles = triton.cdiv(n, tile.block_m)
    shifts = tiles // 2
    width = min(shifts, max(8, d))  # of a launch: what bounds the memory
    programs = triton.cdiv(width, RUN)
    slots = sort.share.new_zeros((width + programs + PARTS, padded))
    precision = _launch.precision(sort.x.dtype)
    for first in range(1, shifts + 1, max(1, width)):
        _launch.launch(
            push.sum_apart_kernel,
            (tiles, programs),
            tile,
            sort.x, sort.first, sort.past, sort.live, slots, padded, scale,
            first, width, min(first + width, shifts + 1),
            ALL=all_form, D=depth, BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, RUN=RUN,
            PRECISION=precision,
        )  # fmt: skip
    _launch.launch(
        push.sum_mixed_kernel,
        (triton.cdiv(n, mixed.block_m), PARTS),
        mixed,
        sort.x, sort.first, sort.past, sort.live, slots[width + programs :], padded, scale,
        UNIT=tile.block_m, ALL=all_form, D=depth, BLOCK_M=mixed.block_m, BLOCK_N=mixed.block_n,
        PRECISION=precision,
    )  # fmt: skip
    return slots.sum(0)


def _positives(sort: Rows, sums: Tensor, n: int, scale: float) -> Tensor:
    """Return parts [2 PARTS, N padded] of each row's losses and slopes, alternately."""
    (padded, depth), tile = sort.x.shape, _tile(MIXED, sort.x)
    parts = sums.new_empty((2 * PARTS, padded))
    _launch.launch(
        push.positives_kernel,
        (triton.cdiv(n, tile.block_m), PARTS),
        tile,
        sort.x, sort.first, sort.past, sort.live, sums, parts, padded, scale,
        D=depth, BLOCK_M=tile.block_m, BLOCK_N=tile.block_n,
        PRECISION=_launch.precision(sort.x.dtype),
    )  # fmt: skip
    return parts


def _sum_tiles(sort: Rows, pair: Tensor | None) -> tuple[Tensor, tuple[int, int], dict[str, int]]:
    """Return sums of the rows of each tile, and the grid and constants of kernels that use them."""
    padded, depth = sort.x.shape
    constants = dict(D=depth, BLOCK_M=SUM_TILE.block_m, BLOCK_D=min(depth, SUM_TILE.block_n))
    grid = (padded // constants["BLOCK_M"], depth // constants["BLOCK_D"])
    sums = sort.share.new_empty((1 if pair is None else 2, grid[0], depth))
    _launch.launch(rows.tile_sums_kernel, grid, SUM_TILE, sort.x, pair, sums, **constants)
    return sums, grid, constants


def _class_cosines(sort: Rows, n: int) -> Tensor:
    """Return parts [·, N padded] of each row's sum of cosines with its positives."""
    sums, grid, constants = _sum_tiles(sort, None)
    parts = sums.new_empty((grid[1], sort.x.shape[0]))
    _launch.launch(
        rows.class_cosines_kernel,
        grid,
        SUM_TILE,
        sort.x, sums, sort.first, sort.past, sort.live, parts, parts.shape[1], **constants,
    )  # fmt: skip
    return parts


def backward(
    grad: Tensor,  # []
    features: Tensor,
    labels: Tensor,
    weights: Tensor | None,
    z: Tensor,
    u: Tensor,
    temperature: float,
    denominator: str,
    ignore_index: int,
) -> Tensor:
    """Return dL/dfeatures [N, D]."""
    (n, d), all_form = features.shape, denominator == "all"
    out = features.new_empty((n, d))
    if n == 0:
        return out
    with _launch.on_device(features):
        half = features.dtype == torch.float16
        largest_share = _float16.largest_share(temperature) if half else 1.0
        sort = _sort(features, labels, weights, ignore_index, (z, u), largest_share)
        scale, depth = LOG2E / temperature, sort.x.shape[1]
        gradient = None if n <= FEW_ROWS else _pull_apart(sort, n, scale, all_form)
        tile = _tile(FEW if gradient is None else GRADIENT, sort.x)
        unit = tile if gradient is None else _tile(PULL, sort.x)
        part = _gradient_part(depth)
        _launch.launch(
            pull.gradient_kernel,
            (triton.cdiv(n, tile.block_m), depth // part),
            tile,
            sort.x, sort.first, sort.past, sort.live, sort.z, sort.u, sort.pair, sort.order,
            gradient, grad, sort.share.sum(), out, n, d, scale, 1 / temperature,
            ALL=all_form, D=depth, PART=part, UNIT_M=unit.block_m, UNIT_N=unit.block_n,
            BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, PRECISION=_launch.precision(sort.x.dtype),
        )  # fmt: skip
    return out


def _pull_apart(sort: Rows, n: int, scale: float, all_form: bool) -> Tensor:
    """Return G X [N padded, D padded] of all tiles that need no mask."""
    depth, tile, part = sort.x.shape[1], _tile(PULL, sort.x), _gradient_part(sort.x.shape[1])
    gradient = torch.empty_like(sort.x, dtype=torch.float32)
    _launch.launch(
        pull.pull_apart_kernel,
        (triton.cdiv(n, tile.block_m), depth // part),
        tile,
        sort.x, sort.first, sort.past, sort.live, sort.u, gradient, scale,
        ALL=all_form, D=depth, PART=part, BLOCK_M=tile.block_m, BLOCK_N=tile.block_n,
        PRECISION=_launch.precision(sort.x.dtype),
    )  # fmt: skip
    if all_form:
        sums, grid, constants = _sum_tiles(sort, sort.pair)
        _launch.launch(
            rows.class_pull_kernel,
            grid,
            SUM_TILE,
            sort.x, sort.pair, sums, sort.first, sort.past, sort.live, gradient, **constants,
        )  # fmt: skip
    return gradient


def _gradient_part(depth: int) -> int:
    """Return how many columns of the gradient a program makes: a row of 512 floats spills."""
    return min(depth, 256)


def _tile(table: tuple[_launch.TileRow, ...], x: Tensor) -> Tile:
    return choose_tile(table, _launch.capability(x.device), x.shape[1], x.dtype)
