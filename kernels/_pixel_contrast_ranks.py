# SPDX-License-Identifier: Apache-2.0
"""Pixel contrast in Triton where rows are some of many: sums over their pairs with some keys.

Keys are the rows themselves or rows of other ranks (ops/_pixel_contrast_ranks.py adds them up).
Both are sorted by class, so that the keys of a row's class are a range of columns: outside of the
tiles that it touches, nothing is masked. Each program sums for its own rows alone.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pipa_fast.kernels import _launch
from pipa_fast.kernels import pixel_contrast as whole
from pipa_fast.kernels._launch import LN2, LOG2E, Tile
from pipa_fast.kernels._pixel_contrast_backward import _entries, _own_tiles, _pull, _rounded
from pipa_fast.kernels._pixel_contrast_forward import _dot_scores, _positives
from pipa_fast.kernels._pixel_contrast_tiles import GRADIENT, MIXED
from pipa_fast.reference import _float16
from pipa_fast.reference.pixel_contrast import Rows, Settings


@triton.jit
def _add_exponentials(
    sums, x, Keys, first, past, begin, end, live, scale,
    MASKED: tl.constexpr, D: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add e of tiles begin … end, with MASKED of those columns that are live and not in range."""
    for tile in range(begin, end):
        column = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        e = tl.exp2(_dot_scores(x, Keys, column.to(tl.int64), scale, D, PRECISION))
        if MASKED:
            across = column[None, :]
            wanted = ((across < first[:, None]) | (across >= past[:, None])) & (across < live)
            e = tl.where(wanted, e, 0.0)
        sums += tl.sum(e, 1)
    return sums


# fmt: off
@triton.jit
def ranks_denominators_kernel(
    X, Live, Order,  # [N padded, D], [], [N] sorted rows
    Keys, LiveKeys,  # [M padded, D], []
    First, Past,  # [N padded] int32, columns that a row leaves out
    Z,  # [N]
    n, scale,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):
    # fmt: on
    """Sum e over the keys that count in rows' denominators."""
    live, live_keys = tl.load(Live), tl.load(LiveKeys)
    start = tl.program_id(0) * BLOCK_M
    row = start + tl.arange(0, BLOCK_M)
    first, past = tl.load(First + row), tl.load(Past + row)
    sums = tl.zeros((BLOCK_M,), tl.float32)
    if start < live:
        low, high = _own_tiles(First, Past, start, live, False, BLOCK_M, BLOCK_N)
        full, blocks = live_keys // BLOCK_N, tl.cdiv(live_keys, BLOCK_N)
        k = tl.arange(0, D)
        x = tl.load(X + row.to(tl.int64)[:, None] * D + k[None, :])
        low = tl.minimum(low, full)
        sums = _add_exponentials(
            sums, x, Keys, first, past, 0, low, live_keys, scale, False, D, BLOCK_N, PRECISION
        )
        sums = _add_exponentials(
            sums, x, Keys, first, past, high, full, live_keys, scale, False, D, BLOCK_N, PRECISION
        )
        high = tl.minimum(high, full)
        sums = _add_exponentials(
            sums, x, Keys, first, past, low, high, live_keys, scale, True, D, BLOCK_N, PRECISION
        )
        sums = _add_exponentials(
            sums, x, Keys, first, past, full, blocks, live_keys, scale, True, D, BLOCK_N, PRECISION
        )
    source = tl.load(Order + row, mask=row < n, other=0)
    tl.store(Z + source, tl.where(row < live, sums, 0.0), mask=row < n)


# fmt: off
@triton.jit
def ranks_positives_kernel(
    X, Live, Order,
    Keys,
    First, Past,  # [N padded] int32, keys of a row's class
    Z,  # [N padded]
    Losses, Slopes,  # [N]
    n, scale,
    SELF: tl.constexpr,  # the rows are their own keys
    ALL: tl.constexpr, D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # fmt: on
    """Sum the losses of rows' positives and their derivatives by log Z."""
    live = tl.load(Live)
    start = tl.program_id(0) * BLOCK_M
    row = start + tl.arange(0, BLOCK_M)
    there = row < live
    first = tl.load(First + row)
    past = tl.where(there, tl.load(Past + row), 0)
    z = tl.load(Z + row)
    log_z = tl.log2(tl.where(z == 0, 1.0, z))
    low, high = _own_tiles(First, Past, start, live, False, BLOCK_M, BLOCK_N)
    high = tl.where(start < live, high, low)
    k = tl.arange(0, D)
    x = tl.load(X + row.to(tl.int64)[:, None] * D + k[None, :])
    itself = row if SELF else row * 0 - 1
    losses, slopes = _positives(
        x, Keys, itself, first, past, log_z, low, high, 1, scale,
        ALL, D, BLOCK_M, BLOCK_N, PRECISION,
    )  # fmt: skip
    if ALL:
        slopes = tl.maximum(past - first - (1 if SELF else 0), 0).to(tl.float32)
        losses = slopes * log_z * LN2 - losses
    source = tl.load(Order + row, mask=row < n, other=0)
    tl.store(Losses + source, tl.where(there, losses, 0.0), mask=row < n)
    tl.store(Slopes + source, tl.where(there, slopes, 0.0), mask=row < n)


# fmt: off
@triton.jit
def ranks_pulls_kernel(
    X, Live, Order,
    Z, U, W,  # [N padded]
    Keys, LiveKeys, KeyZ, KeyU, KeyW,  # [M padded, D], [], [M padded] …
    First, Past,  # [N padded] int32, keys of a row's class
    Gain,  # [] of U and W
    Out,  # [N, d] fp32
    n, d, scale,
    SELF: tl.constexpr, ALL: tl.constexpr, D: tl.constexpr,
    PART: tl.constexpr,  # columns of the gradient that a program makes
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):
    # fmt: on
    """Sum G x over the keys."""
    live = tl.load(Live)
    start = tl.program_id(0) * BLOCK_M
    row = start + tl.arange(0, BLOCK_M)
    own = tl.program_id(1) * PART + tl.arange(0, PART)
    k = tl.arange(0, D)
    first, past = tl.load(First + row), tl.load(Past + row)
    z, u, w = tl.load(Z + row), tl.load(U + row), tl.load(W + row)
    low, high = _own_tiles(First, Past, start, live, False, BLOCK_M, BLOCK_N)
    blocks = tl.where(start < live, tl.cdiv(tl.load(LiveKeys), BLOCK_N), 0)
    low, high = tl.minimum(low, blocks), tl.minimum(high, blocks)
    x = tl.load(X + row.to(tl.int64)[:, None] * D + k[None, :])
    gradient = tl.zeros((BLOCK_M, PART), tl.float32)
    gradient = _pull(gradient, x, Keys, u, KeyU, own, 0, low, scale, D, PART, BLOCK_N, PRECISION)
    gradient = _pull(
        gradient, x, Keys, u, KeyU, own, high, blocks, scale, D, PART, BLOCK_N, PRECISION
    )
    itself = row if SELF else row * 0 - 1
    for tile in range(low, high):
        column = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        y = tl.load(Keys + column.to(tl.int64)[:, None] * D + k[None, :])
        e = tl.exp2(tl.dot(x, tl.trans(y), input_precision=PRECISION) * scale - scale)
        across = column[None, :]
        same = (across >= first[:, None]) & (across < past[:, None])
        g = _entries(e, itself, column, same, z, u, w, KeyZ, KeyU, KeyW, ALL)
        if PART < D:
            y = tl.load(Keys + column.to(tl.int64)[:, None] * D + own[None, :])
        gradient = tl.dot(_rounded(g, y), y, gradient, input_precision=PRECISION)
    source = tl.load(Order + row, mask=row < n, other=0)
    gradient = tl.where((row < live)[:, None], gradient / tl.load(Gain), 0.0)
    mask = (row < n)[:, None] & (own < d)[None, :]
    tl.store(Out + source[:, None] * d + own[None, :], gradient, mask=mask)


class Side(NamedTuple):
    """Rows or keys sorted by class, ignored ones last and 0."""

    x: Tensor  # [N padded, D padded]
    order: Tensor  # [N] int64
    live: Tensor  # [] int32
    keys: Tensor  # [N] int64 ascending, DEAD where ignored


def _side(rows: Rows, settings: Settings) -> Side:
    sort = whole._sort(rows.x, rows.labels, None, settings.ignore_index, counting=False)
    return Side(sort.x, sort.order, sort.live, sort.keys)


class Meeting(NamedTuple):
    """Rows and the keys that they meet."""

    rows: Side
    keys: Side
    itself: bool  # the rows are their own keys
    first: Tensor  # [N padded] int32, where among the keys a row's class begins
    past: Tensor  # and ends

    @classmethod
    def of(cls, rows: Rows, keys: Rows | None, settings: Settings) -> "Meeting":
        """Sort both, and find the classes of rows among the keys."""
        side = _side(rows, settings)
        other = side if keys is None else _side(keys, settings)
        ranges = []
        for right in (False, True):
            found = torch.searchsorted(other.keys, side.keys, right=right, out_int32=True)
            ranges.append(_padded(found, side, 0))
        return cls(side, other, keys is None, *ranges)

    @property
    def left_out(self) -> tuple[Tensor, Tensor]:
        """With "all", what is left out of denominators: the row itself, or nothing."""
        row = torch.arange(len(self.rows.x), dtype=torch.int32, device=self.first.device)
        return (row, row + 1) if self.itself else (torch.zeros_like(row),) * 2


def _padded(values: Tensor, side: Side, fill: float) -> Tensor:
    """Fill sorted values [N] up to the rows of whole tiles."""
    out = values.new_full((side.x.shape[0],), fill)
    out[: len(values)] = values
    return out


def _sorted(values: Tensor | None, side: Side, fill: float, factor: Tensor | float = 1) -> Tensor:
    """Return what is known of each row, times a factor, where the row stands now."""
    assert values is not None
    there = torch.arange(len(values), device=values.device) < side.live
    return _padded(torch.where(there, values[side.order] * factor, fill), side, fill)


def _cut(table: tuple[_launch.TileRow, ...], meeting: Meeting) -> tuple[int, Tile, dict[str, int]]:
    """Return how many programs the rows are for, their tile, and the constants of all kernels."""
    x = meeting.rows.x
    tile = whole._tile(table, x)
    constants = dict(
        D=x.shape[1],
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        PRECISION=_launch.precision(x.dtype),
    )
    return triton.cdiv(len(meeting.rows.order), tile.block_m), tile, constants


def _unlimited(tile: Tile) -> Tile:
    """Return the tile with all registers that a thread may have, unless its table says how many.

    ptxas would spill two to fit one more block: positives with ALL, denominators of 512 columns.
    """
    return tile._replace(registers=tile.registers or 255)


def denominators(rows: Rows, keys: Rows | None, settings: Settings) -> Tensor:
    """Return Z [N] over the keys."""
    n = len(rows.labels)
    z = rows.x.new_zeros(n, dtype=torch.float32)
    if not _meet(rows, keys):
        return z
    with _launch.on_device(rows.x):
        meeting = Meeting.of(rows, keys, settings)
        programs, tile, constants = _cut(MIXED, meeting)
        tile = _unlimited(tile)
        all_form = settings.denominator == "all"
        ranges = meeting.left_out if all_form else (meeting.first, meeting.past)
        _launch.launch(
            ranks_denominators_kernel,
            (programs,),
            tile,
            *(meeting.rows.x, meeting.rows.live, meeting.rows.order),
            *(meeting.keys.x, meeting.keys.live, *ranges, z, n, LOG2E / settings.temperature),
            **constants,
        )
    return z


def positives(rows: Rows, keys: Rows | None, settings: Settings) -> tuple[Tensor, Tensor]:
    """Return the sums of positives' losses, and of their derivatives by log Z [N]."""
    n = len(rows.labels)
    losses, slopes = rows.x.new_zeros((2, n), dtype=torch.float32)
    if not _meet(rows, keys):
        return losses, slopes
    with _launch.on_device(rows.x):
        meeting = Meeting.of(rows, keys, settings)
        programs, tile, constants = _cut(MIXED, meeting)
        tile = _unlimited(tile)
        side = meeting.rows
        _launch.launch(
            ranks_positives_kernel,
            (programs,),
            tile,
            *(side.x, side.live, side.order, meeting.keys.x, meeting.first, meeting.past),
            *(_sorted(rows.z, side, 1), losses, slopes, n, LOG2E / settings.temperature),
            SELF=meeting.itself,
            ALL=settings.denominator == "all",
            **constants,
        )
    return losses, slopes


def pulls(rows: Rows, keys: Rows | None, settings: Settings) -> Tensor:
    """Return G X [N, D] over the keys, in float32."""
    n, d = rows.x.shape
    out = rows.x.new_zeros((n, d), dtype=torch.float32)
    if not _meet(rows, keys):
        return out
    with _launch.on_device(rows.x):
        meeting = Meeting.of(rows, keys, settings)
        programs, tile, constants = _cut(GRADIENT, meeting)
        others = rows if keys is None else keys
        gain = _float16.gain(rows, others, settings.temperature)
        part = whole._gradient_part(meeting.rows.x.shape[1])
        values = [
            _sorted(known, side, fill, factor)
            for of, side in ((rows, meeting.rows), (others, meeting.keys))
            for known, fill, factor in ((of.z, 1, 1), (of.u, 0, gain), (of.w, 0, gain))
        ]
        _launch.launch(
            ranks_pulls_kernel,
            (programs, meeting.rows.x.shape[1] // part),
            tile,
            *(meeting.rows.x, meeting.rows.live, meeting.rows.order, *values[:3]),
            *(meeting.keys.x, meeting.keys.live, *values[3:], meeting.first, meeting.past),
            *(gain, out, n, d, LOG2E / settings.temperature),
            SELF=meeting.itself,
            ALL=settings.denominator == "all",
            PART=part,
            **constants,
        )
    return out


def _meet(rows: Rows, keys: Rows | None) -> bool:
    """Return whether there is a pair: nothing is launched for none."""
    return len(rows.labels) > 0 and (keys is None or len(keys.labels) > 0)
