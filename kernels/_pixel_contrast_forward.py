# SPDX-License-Identifier: Apache-2.0
"""Pixel contrast in Triton, forward: Z of every row, then the losses of its positives.

X [N padded, D] rows sorted by class, of which the first Live take part; First and Past [N padded]
where a row's class begins and ends. Scores are in powers of two: 2^((x_i·x_j - 1) scale) = e_ij,
scale = log2(e)/τ. F tiles are full of live rows; one more may be partly so.
"""

import triton
import triton.language as tl

from pipa_fast.kernels._launch import LN2


@triton.jit
def _dot_scores(x, Y, column, scale, D: tl.constexpr, PRECISION: tl.constexpr):
    """log2 e of rows x [M, D] against columns of Y, from `column` [N] on."""
    k = tl.arange(0, D)
    y = tl.load(Y + column[:, None] * D + k[None, :])
    return tl.dot(x, tl.trans(y), input_precision=PRECISION) * scale - scale


@triton.jit
def _negatives(column, row, first, past, live, ALL: tl.constexpr):
    """Which columns [1, N] count in the denominators of rows [M]."""
    if ALL:
        wanted = column != row[:, None]
    else:
        wanted = (column < first[:, None]) | (column >= past[:, None])
    return wanted & (column < live)


@triton.jit
def _positives(
    x,  # [M, D]
    X,
    row,  # [M]
    first,  # [M]
    past,  # [M]
    log_z,  # [M], of two
    begin,  # tiles of columns
    end,
    step,
    scale,
    ALL: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Sums over rows' positives of the loss, and of its derivative by log Z; with ALL, of scores.

    softplus(y) = max(y, 0) + log(1 + w), w = exp(-|y|). Logarithms are taken of products over
    tiles; what t = 1 + w rounds away, (w - (t - 1)) / t, is added, so that small losses keep their
    digits.
    """
    FEW: tl.constexpr = 64  # factors of at most 2 that a product holds safely
    lane = tl.arange(0, BLOCK_N)
    losses = tl.zeros((BLOCK_M,), tl.float32)
    slopes = tl.zeros((BLOCK_M,), tl.float32)
    for chunk in range(begin, end, step * FEW):
        product = tl.full((BLOCK_M, BLOCK_N), 1.0, tl.float32)
        for tile in range(chunk, tl.minimum(end, chunk + step * FEW), step):
            column = tile * BLOCK_N + lane
            s = _dot_scores(x, X, column.to(tl.int64), scale, D, PRECISION)
            column = column[None, :]
            wanted = (
                (column >= first[:, None]) & (column < past[:, None]) & (column != row[:, None])
            )
            if ALL:
                losses += LN2 * tl.sum(tl.where(wanted, s, 0.0), 1)
            else:
                y = log_z[:, None] - s
                w = tl.exp2(-tl.abs(y))
                t = 1.0 + w
                root = tl.rsqrt(t)
                inverse = root * root  # of t, without a division
                lost = (w - (t - 1.0)) * inverse
                loss = tl.maximum(y, 0.0) * LN2 + lost
                slope = tl.where(y >= 0, inverse, w * inverse)
                product *= tl.where(wanted, t, 1.0)
                losses += tl.sum(tl.where(wanted, loss, 0.0), 1)
                slopes += tl.sum(tl.where(wanted, slope, 0.0), 1)
        if not ALL:
            losses += LN2 * tl.sum(tl.log2(product), 1)
    return losses, slopes


@triton.jit
def _finish(
    row,
    first,
    past,
    live,
    z,
    losses,
    slopes,
    Share,
    Pair,
    Order,
    Z,
    U,
    Totals,
    n,
    ALL: tl.constexpr,
):
    """Store Z and u where the rows came from, and this program's sums of losses and of shares.

    Whether a row has negatives is decided by the classes: Z alone might have been rounded.
    """
    share = tl.load(Share + row, mask=row < live, other=0.0)
    pair = tl.load(Pair + row, mask=row < live, other=0.0)
    if ALL:
        counts = share > 0
        losses = share * tl.log(z) - pair * losses
        u = share / z
    else:
        counts = (pair > 0) & (past - first < live)
        losses = pair * losses
        u = pair * slopes / z
    source = tl.load(Order + row, mask=row < n, other=0)
    tl.store(Z + source, tl.where(row < live, z, 0.0), mask=row < n)
    tl.store(U + source, tl.where(counts, u, 0.0), mask=row < n)
    tl.store(Totals + tl.program_id(0), tl.sum(tl.where(counts, losses, 0.0), 0))
    tl.store(Totals + tl.num_programs(0) + tl.program_id(0), tl.sum(share, 0))


@triton.jit(do_not_specialize=["first_shift", "row_slot", "past_shift"])
def sum_apart_kernel(
    X,
    First,
    Past,
    Live,
    Slots,  # [shifts, then row sums, N padded], added to; an element has one writer in a launch
    n_padded,
    scale,
    first_shift,  # of this launch, whose slot is 0
    row_slot,  # where row sums begin
    past_shift,
    ALL: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    RUN: tl.constexpr,  # shifts of a program
    PRECISION: tl.constexpr,
):
    """Sum e over pairs of full tiles that have no class in common, each pair once for both sides.

    Tile i meets tiles i + s around a circle of the F full tiles, s = 1 … F/2, which visits each
    pair once. In one shift each tile is a column once, so that each sum has one writer a launch and
    grows in a fixed order. Nothing races for the atomic additions: they spare the registers of a
    load, with which two blocks do not fit. Tiles of i's own classes lie side by side, and leave one
    range of shifts.
    """
    i = tl.program_id(0)
    part = tl.program_id(1)
    full = tl.load(Live) // BLOCK_M
    if i >= full:
        return
    PIECES: tl.constexpr = BLOCK_M // BLOCK_N
    low = i
    high = i + 1
    if not ALL:  # there, a row is alone in its class
        low = tl.load(First + i * BLOCK_M) // BLOCK_M
        high = tl.minimum(tl.cdiv(tl.load(Past + i * BLOCK_M + BLOCK_M - 1), BLOCK_M), full)
    half = (full - 1 + (2 * i < full).to(tl.int32)) // 2  # of an even circle, the last shift once
    begin = first_shift + part * RUN
    end = tl.minimum(tl.minimum(begin + RUN, past_shift), tl.minimum(full - i + low, half + 1))
    begin = tl.maximum(begin, high - i)

    row = i * BLOCK_M + tl.arange(0, BLOCK_M)
    lane = tl.arange(0, BLOCK_N)
    k = tl.arange(0, D)
    x = tl.load(X + row.to(tl.int64)[:, None] * D + k[None, :])
    sums = tl.zeros((BLOCK_M,), tl.float32)
    for piece in range(begin * PIECES, end * PIECES):
        tile = i * PIECES + piece
        tile = tl.where(tile >= full * PIECES, tile - full * PIECES, tile)
        column = tile.to(tl.int64) * BLOCK_N
        e = tl.exp2(_dot_scores(x, X + column * D, lane, scale, D, PRECISION))
        sums += tl.sum(e, 1)
        out = Slots + (piece // PIECES - first_shift).to(tl.int64) * n_padded + column + lane
        tl.atomic_add(out, tl.sum(e, 0), sem="relaxed")
    out = Slots + (row_slot + part).to(tl.int64) * n_padded + row
    tl.atomic_add(out, sums, sem="relaxed")


@triton.jit
def sum_mixed_kernel(
    X,
    First,
    Past,
    Live,
    Slots,  # [parts, N padded]
    n_padded,
    scale,
    UNIT: tl.constexpr,  # rows of sum_apart_kernel's tiles
    ALL: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Sum e, with masks, over the tiles that sum_apart_kernel leaves out: those that share a class
    with the rows, without those where all pairs are of one class, and those not full of live rows.
    """
    tl.static_assert(UNIT % BLOCK_M == 0 and UNIT % BLOCK_N == 0)
    part = tl.program_id(1)
    live = tl.load(Live)
    start = tl.program_id(0) * BLOCK_M
    if start >= live:
        return
    row = start + tl.arange(0, BLOCK_M)
    first = tl.load(First + row)
    past = tl.load(Past + row)
    blocks = tl.cdiv(live, BLOCK_N)
    unit = start // UNIT
    full = live // UNIT
    low = unit
    high = unit + 1
    if not ALL:
        low = tl.load(First + unit * UNIT) // UNIT
        high = tl.cdiv(tl.load(Past + tl.minimum(unit * UNIT + UNIT, live) - 1), UNIT)
    low = tl.where(unit == full, 0, low * (UNIT // BLOCK_N))  # what is not full was left out
    high = tl.where(unit == full, blocks, tl.minimum(high * (UNIT // BLOCK_N), blocks))
    tail = tl.maximum(high, full * (UNIT // BLOCK_N))
    inner = low
    outer = low
    if not ALL:
        class_end = tl.load(Past + start)
        alone = class_end >= tl.minimum(start + BLOCK_M, live)
        inner = tl.where(alone, tl.cdiv(tl.load(First + start), BLOCK_N), low)
        outer = tl.where(alone, tl.maximum(class_end // BLOCK_N, inner), low)

    k = tl.arange(0, D)
    x = tl.load(X + row.to(tl.int64)[:, None] * D + k[None, :])
    lane = tl.arange(0, BLOCK_N)
    sums = tl.zeros((BLOCK_M,), tl.float32)
    count = (high - low) - (outer - inner) + (blocks - tail)
    for index in range(part, count, tl.num_programs(1)):
        tile = low + index
        tile = tl.where(tile >= inner, tile + (outer - inner), tile)
        tile = tl.where(tile >= high, tile + (tail - high), tile)
        column = tile * BLOCK_N + lane
        e = tl.exp2(_dot_scores(x, X, column.to(tl.int64), scale, D, PRECISION))
        wanted = _negatives(column[None, :], row, first, past, live, ALL)
        sums += tl.sum(tl.where(wanted, e, 0.0), 1)
    tl.store(Slots + part.to(tl.int64) * n_padded + row, sums)


@triton.jit
def positives_kernel(
    X,
    First,
    Past,
    Live,
    Z,  # [N padded]
    Slots,  # [2 parts, N padded]
    n_padded,
    scale,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Sum the losses of positives and their slopes over the tiles that share a class."""
    part = tl.program_id(1)
    live = tl.load(Live)
    start = tl.program_id(0) * BLOCK_M
    if start >= live:
        return
    row = start + tl.arange(0, BLOCK_M)
    first = tl.load(First + row)
    past = tl.where(row < live, tl.load(Past + row), 0)
    z = tl.load(Z + row)
    log_z = tl.log2(tl.where(z == 0, 1.0, z))
    begin = tl.load(First + start) // BLOCK_N + part
    end = tl.cdiv(tl.load(Past + tl.minimum(start + BLOCK_M, live) - 1), BLOCK_N)
    k = tl.arange(0, D)
    x = tl.load(X + row.to(tl.int64)[:, None] * D + k[None, :])
    losses, slopes = _positives(
        x, X, row, first, past, log_z, begin, end, tl.num_programs(1), scale,
        False, D, BLOCK_M, BLOCK_N, PRECISION,
    )  # fmt: skip
    out = Slots + (2 * part).to(tl.int64) * n_padded + row
    tl.store(out, losses)
    tl.store(out + n_padded, slopes)


@triton.jit
def finish_kernel(
    First,
    Past,
    Live,
    Share,
    Pair,
    Order,
    RowZ,  # [N padded]
    Slots,  # [2 parts, N padded] of positives; with ALL [parts, N padded] their cosines
    Z,  # [N]
    U,  # [N]
    Totals,  # [2, programs]
    n,
    n_padded,
    scale,
    PARTS: tl.constexpr,
    ALL: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Add up the parts of rows' positives, and finish the rows."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    live = tl.load(Live)
    losses = tl.zeros((BLOCK_M,), tl.float32)
    slopes = tl.zeros((BLOCK_M,), tl.float32)
    taken = row < live
    for part in range(PARTS):
        if ALL:
            losses += tl.load(Slots + part * n_padded + row, mask=taken, other=0.0)
        else:
            losses += tl.load(Slots + 2 * part * n_padded + row, mask=taken, other=0.0)
            slopes += tl.load(Slots + (2 * part + 1) * n_padded + row, mask=taken, other=0.0)
    first = tl.load(First + row)
    past = tl.load(Past + row)
    if ALL:
        losses = (losses - (past - first - 1)) * (scale * LN2)
    _finish(
        row, first, past, live, tl.load(RowZ + row), losses, slopes,
        Share, Pair, Order, Z, U, Totals, n, ALL,
    )  # fmt: skip


@triton.jit
def few_rows_kernel(
    X,
    First,
    Past,
    Live,
    Share,
    Pair,
    Order,
    Z,  # [N]
    U,  # [N]
    Totals,  # [2, programs]
    n,
    scale,
    ALL: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """All of the forward pass in one launch: where rows are few, launches are what takes time."""
    live = tl.load(Live)
    start = tl.program_id(0) * BLOCK_M
    row = start + tl.arange(0, BLOCK_M)
    first = tl.load(First + row)
    past = tl.where(row < live, tl.load(Past + row), 0)
    k = tl.arange(0, D)
    x = tl.load(X + row.to(tl.int64)[:, None] * D + k[None, :])
    z = tl.zeros((BLOCK_M,), tl.float32)
    # Rows that take no part meet no tile; zeros are theirs all the same.
    for tile in range(0, tl.where(start < live, tl.cdiv(live, BLOCK_N), 0)):
        column = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        e = tl.exp2(_dot_scores(x, X, column.to(tl.int64), scale, D, PRECISION))
        wanted = _negatives(column[None, :], row, first, past, live, ALL)
        z += tl.sum(tl.where(wanted, e, 0.0), 1)
    begin = tl.load(First + start) // BLOCK_N
    end = tl.cdiv(tl.load(Past + tl.minimum(start + BLOCK_M, tl.maximum(live, 1)) - 1), BLOCK_N)
    end = tl.where(start < live, end, begin)
    losses, slopes = _positives(
        x, X, row, first, past, tl.log2(tl.where(z == 0, 1.0, z)), begin, end, 1, scale,
        ALL, D, BLOCK_M, BLOCK_N, PRECISION,
    )  # fmt: skip
    _finish(row, first, past, live, z, losses, slopes, Share, Pair, Order, Z, U, Totals, n, ALL)
