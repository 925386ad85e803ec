# SPDX-License-Identifier: Apache-2.0
"""Pixel contrast in Triton, backward: dX = G X/τ, with G made tile by tile and never stored.

X [N padded, D] rows sorted by class, of which the first Live take part and the rest are 0, as are
their u and weights: whatever finite entries of G they meet, they add nothing, so that tiles outside
of a class's range need no mask.
"""

import triton
import triton.language as tl


@triton.jit
def _own_tiles(
    First, Past, start, live, ALL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    """First and past tile of columns that share a class with the rows; with ALL, a row."""
    low = start // BLOCK_N
    high = tl.cdiv(start + BLOCK_M, BLOCK_N)
    if not ALL:
        last = tl.maximum(tl.minimum(start + BLOCK_M, live), 1) - 1
        low = tl.load(First + start) // BLOCK_N
        high = tl.cdiv(tl.load(Past + last), BLOCK_N)
    return low, high


@triton.jit
def _rounded(g, y):
    """Entries of G as their product with y takes them.

    Columns that take no part have e = exp(-1/τ), however small a row's Z: an entry may be far
    beyond float16, and inf · 0 would be NaN. The others are within its range (_float16), so that
    nothing else is cut off; NaN, which is also what is stored for an infinite u, stays NaN.
    """
    if y.dtype == tl.float16:
        g = tl.minimum(g, 65504.0, propagate_nan=tl.PropagateNan.ALL)
    return g.to(y.dtype)


@triton.jit
def _pull(
    gradient,  # [M, PART]
    x,  # [M, D]
    X,
    u,  # [M]
    U,
    own,  # [PART] columns of the gradient
    begin,  # tiles of columns
    end,
    scale,
    D: tl.constexpr,
    PART: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add e (u_i + u_j) x_j of tiles begin … end."""
    lane = tl.arange(0, BLOCK_N)
    k = tl.arange(0, D)
    for tile in range(begin, end):
        column = tl.full((), tile, tl.int64) * BLOCK_N
        y = tl.load(X + column * D + lane[:, None] * D + k[None, :])
        e = tl.exp2(tl.dot(x, tl.trans(y), input_precision=PRECISION) * scale - scale)
        g = e * (u[:, None] + tl.load(U + column + lane)[None, :])
        if PART < D:
            y = tl.load(X + column * D + lane[:, None] * D + own[None, :])
        gradient = tl.dot(_rounded(g, y), y, gradient, input_precision=PRECISION)
    return gradient


@triton.jit
def pull_apart_kernel(
    X,
    First,
    Past,
    Live,
    U,  # [N padded]
    Gradient,  # [N padded, D] float32, written
    scale,
    ALL: tl.constexpr,
    D: tl.constexpr,
    PART: tl.constexpr,  # columns of the gradient that a program makes
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Sum e (u_i + u_j) x_j over the tiles that share no class with the rows."""
    live = tl.load(Live)
    start = tl.program_id(0) * BLOCK_M
    if start >= live:
        return
    low, high = _own_tiles(First, Past, start, live, ALL, BLOCK_M, BLOCK_N)
    blocks = tl.cdiv(live, BLOCK_N)

    row = start + tl.arange(0, BLOCK_M)
    k = tl.arange(0, D)
    own = tl.program_id(1) * PART + tl.arange(0, PART)
    x = tl.load(X + row.to(tl.int64)[:, None] * D + k[None, :])
    u = tl.load(U + row)
    gradient = tl.zeros((BLOCK_M, PART), tl.float32)
    # Two loops take 50 registers fewer than one that skips the tiles between them.
    gradient = _pull(gradient, x, X, u, U, own, 0, low, scale, D, PART, BLOCK_N, PRECISION)
    gradient = _pull(gradient, x, X, u, U, own, high, blocks, scale, D, PART, BLOCK_N, PRECISION)
    tl.store(Gradient + row.to(tl.int64)[:, None] * D + own[None, :], gradient)


@triton.jit
def _entries(
    e,  # [M, N]
    row,  # [M]
    column,  # [N]
    same,  # [M, N] rows of the same class
    z,  # [M]
    u,
    pair,
    Z,
    U,
    Pair,
    ALL: tl.constexpr,
):
    """G of a tile."""
    column_pair = tl.load(Pair + column)
    g = e * (u[:, None] + tl.load(U + column)[None, :])
    if ALL:
        g -= tl.where(same, pair[:, None] + column_pair[None, :], 0.0)
        return tl.where(column[None, :] == row[:, None], 0.0, g)
    column_z = tl.load(Z + column)
    # 1 / (Z + e) as a square: a division takes ten times as long
    root = tl.rsqrt(z[:, None] + e)
    column_root = tl.rsqrt(column_z[None, :] + e)
    pull = (pair * z)[:, None] * (root * root)
    pull += (column_pair * column_z)[None, :] * (column_root * column_root)
    return tl.where(column[None, :] == row[:, None], 0.0, tl.where(same, -pull, g))


@triton.jit
def _factor(Grad, Total, inverse_temperature):
    """What G X is multiplied by; 0 where no row is an anchor."""
    total = tl.load(Total)
    return tl.where(total > 0, tl.load(Grad).to(tl.float32) * inverse_temperature / total, 0.0)


# fmt: off
@triton.jit
def gradient_kernel(
    X, First, Past, Live,
    Z, U, Pair,  # [N padded]
    Order,  # [N]
    Gradient,  # [N padded, D] what the other kernels summed, or None
    Grad, Total,  # [] of the loss, of the shares
    Out,  # [N, d]
    n, d, scale, inverse_temperature,
    ALL: tl.constexpr, D: tl.constexpr,
    PART: tl.constexpr,  # columns of the gradient that a program makes
    UNIT_M: tl.constexpr, UNIT_N: tl.constexpr,  # rows and columns of pull_apart_kernel's tiles
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):
    # fmt: on
    """Add what pull_apart_kernel left out, all tiles where nothing is summed yet, and write the
    gradient where the rows came from.

    That is the tiles, of its size, that share a class with the rows. With ALL, Gradient holds what
    a class's own rows do, and the diagonal is left to be skipped.
    """
    tl.static_assert(UNIT_M % BLOCK_M == 0 and UNIT_N % BLOCK_N == 0)
    live = tl.load(Live)
    start = tl.program_id(0) * BLOCK_M
    row = start + tl.arange(0, BLOCK_M)
    there = row < live
    own = tl.program_id(1) * PART + tl.arange(0, PART)
    k = tl.arange(0, D)
    first, past = tl.load(First + row), tl.load(Past + row)
    z, u, pair = tl.load(Z + row), tl.load(U + row), tl.load(Pair + row)
    low = 0
    high = tl.where(start < live, tl.cdiv(live, BLOCK_N), 0)
    gradient = tl.zeros((BLOCK_M, PART), tl.float32)
    if Gradient is not None:
        at = Gradient + row.to(tl.int64)[:, None] * D + own[None, :]
        gradient = tl.load(at, mask=there[:, None], other=0.0)
        unit = start // UNIT_M * UNIT_M
        low, past_unit = _own_tiles(First, Past, unit, live, ALL, UNIT_M, UNIT_N)
        low *= UNIT_N // BLOCK_N
        high = tl.minimum(high, past_unit * (UNIT_N // BLOCK_N))

    x = tl.load(X + row.to(tl.int64)[:, None] * D + k[None, :])
    for tile in range(low, high):
        column = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        y = tl.load(X + column.to(tl.int64)[:, None] * D + k[None, :])
        e = tl.exp2(tl.dot(x, tl.trans(y), input_precision=PRECISION) * scale - scale)
        across = column[None, :]
        same = (across >= first[:, None]) & (across < past[:, None])
        if ALL and Gradient is not None:
            same = across < 0
        g = _entries(e, row, column, same, z, u, pair, Z, U, Pair, ALL)
        if PART < D:
            y = tl.load(X + column.to(tl.int64)[:, None] * D + own[None, :])
        gradient = tl.dot(_rounded(g, y), y, gradient, input_precision=PRECISION)

    factor = _factor(Grad, Total, inverse_temperature)
    source = tl.load(Order + row, mask=row < n, other=0)
    out = tl.where(there[:, None], gradient * factor, 0.0).to(Out.dtype.element_ty)
    mask = (row < n)[:, None] & (own < d)[None, :]
    tl.store(Out + source[:, None] * d + own[None, :], out, mask=mask)
