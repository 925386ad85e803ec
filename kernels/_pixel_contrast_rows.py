# SPDX-License-Identifier: Apache-2.0
"""Pixel contrast in Triton: rows in order of class, and what is linear in each class's sum.

N rows, D padded columns; sorted rows are those of a class side by side, ignored ones last and 0.
First and Past are where a row's class begins and ends, so that "same class" is a range of columns.
"""

import triton
import triton.language as tl


@triton.jit
def _count_below(Keys, key, n, steps, UP_TO: tl.constexpr):
    """How many of n sorted keys are less than `key` (with UP_TO: or equal), by bisection."""
    low = tl.zeros(key.shape, tl.int32)
    high = low + n
    for _ in range(steps):
        middle = low + (high - low) // 2
        other = tl.load(Keys + middle, mask=low < high, other=0)
        right = (other <= key) if UP_TO else (other < key)
        right = right & (low < high)
        low = tl.where(right, middle + 1, low)
        high = tl.where(right, high, middle)
    return low


@triton.jit
def _compare(Keys, key, row, dead_key, n, BLOCK: tl.constexpr):
    """How many of n unsorted keys come before, how many are in a class before, how many up to."""
    dead = key == dead_key
    place = tl.zeros(key.shape, tl.int32)
    first = place
    past = place
    for start in range(0, n, BLOCK):
        column = (start + tl.arange(0, BLOCK))[None, :]
        there = column < n
        other = tl.load(Keys + column, mask=there, other=dead_key)
        alike = (other == dead_key) == dead[:, None]  # ignored rows come last, whatever their key
        less = there & ((alike & (other < key[:, None])) | (~alike & dead[:, None]))
        same = there & (other == key[:, None])
        first += tl.sum(less.to(tl.int32), 1)
        past += tl.sum((less | same).to(tl.int32), 1)
        place += tl.sum((less | (same & (column < row[:, None]))).to(tl.int32), 1)
    return place, first, past


# fmt: off
@triton.jit(do_not_specialize=["steps"])
def sort_rows_kernel(
    Features,  # [N, d] by strides
    Keys,  # [N] int64, sorted; with RANK the labels as they are
    Order,  # [N] int64 row of each sorted one, read; with RANK written
    Weights,  # [N] or None
    Z, U,  # [N] as the forward pass saved them, or None
    X,  # [N padded, D] sorted rows; inf as NaN, since exp2 of an infinite cosine may be 0
    First, Past,  # [N padded]
    SortedZ,  # [N padded]
    Share,  # [N padded] an anchor's weight
    Pair,  # [N padded] and that for each of its positives
    SortedU,  # [N padded] inf as NaN: who rounds G to float16 takes large entries for padding's
    Live,  # [] rows that are not ignored
    n, d, stride_n, stride_d,
    steps,  # that a bisection of n takes
    dead_key,  # of ignored rows
    D: tl.constexpr, BLOCK_M: tl.constexpr, RANK: tl.constexpr,
):
    # fmt: on
    """Sort the rows, which takes their order or, with RANK, finds it by counting, N² in all."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    there = row < n
    key = tl.load(Keys + row, mask=there, other=dead_key)
    if RANK:
        place, first, past = _compare(Keys, key, row, dead_key, n, 128)
        place = tl.where(there, place, row)
        source = row.to(tl.int64)
        tl.store(Order + place, source, mask=there)
    else:
        first = _count_below(Keys, key, n, steps, False)
        past = _count_below(Keys, key, n, steps, True)
        place = row
        source = tl.load(Order + row, mask=there, other=0)
    live = there & (key != dead_key)
    # The first of the ignored rows, or the last row where none is, tells how many take part.
    tells = there & tl.where(live, place == n - 1, place == first)
    tl.store(Live + tl.zeros_like(row), tl.where(live, n, first), mask=tells)
    positives = tl.where(live, past - first - 1, 0)
    anchors = positives > 0
    share = anchors.to(tl.float32)
    if Weights is not None:  # those of others may be anything
        share = tl.load(Weights + source, mask=anchors, other=0.0)
    tl.store(First + place, first)
    tl.store(Past + place, past)
    tl.store(Share + place, share)
    tl.store(Pair + place, share / tl.maximum(positives, 1))
    if Z is not None:
        tl.store(SortedZ + place, tl.load(Z + source, mask=live, other=1.0))
        u = tl.load(U + source, mask=live, other=0.0)
        tl.store(SortedU + place, u + (u - u))
    column = tl.arange(0, D)
    x = tl.load(
        Features + source[:, None] * stride_n + column[None, :].to(tl.int64) * stride_d,
        mask=live[:, None] & (column < d)[None, :],
        other=0.0,
    )
    tl.store(X + place.to(tl.int64)[:, None] * D + column[None, :], x + (x - x))


@triton.jit
def tile_sums_kernel(
    X,
    Pair,  # [N padded], or None
    Sums,  # [tiles, D] of rows, then as many of rows times Pair
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Sum the rows of each tile."""
    tile = tl.program_id(0).to(tl.int64)
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    x = tl.load(X + row[:, None] * D + k[None, :]).to(tl.float32)
    tl.store(Sums + tile * D + k, tl.sum(x, 0))
    if Pair is not None:
        weighted = tl.sum(x * tl.load(Pair + row)[:, None], 0)
        tl.store(Sums + (tl.num_programs(0) + tile) * D + k, weighted)


@triton.jit
def _sum_between(X, Pair, Sums, begin, end, k, D: tl.constexpr, BLOCK_M: tl.constexpr):
    """Sum rows begin … end, of which one is a tile's edge, times Pair where it is given."""
    lane = tl.arange(0, BLOCK_M)
    inner = tl.cdiv(begin, BLOCK_M)
    outer = end // BLOCK_M
    total = tl.zeros(k.shape, tl.float32)
    for tile in range(inner, outer):
        total += tl.load(Sums + tile * D + k)
    row = tl.where(begin < inner * BLOCK_M, begin // BLOCK_M, outer) * BLOCK_M + lane
    loose = (row >= begin) & (row < end) & ((row < inner * BLOCK_M) | (row >= outer * BLOCK_M))
    x = tl.load(X + row.to(tl.int64)[:, None] * D + k[None, :], mask=loose[:, None], other=0.0)
    x = x.to(tl.float32)
    if Pair is not None:
        x *= tl.load(Pair + row, mask=loose, other=0.0)[:, None]
    return total + tl.sum(x, 0)


@triton.jit
def _class_sums(
    X, Pair, Sums, First, Past, x, row, start, live, k, D: tl.constexpr, BLOCK_M: tl.constexpr
):
    """For each row, the sum of its class [M, K]: of the tile itself, and to its left and right."""
    first = tl.load(First + row)
    past = tl.where(row < live, tl.load(Past + row), 0)
    column = start + tl.arange(0, BLOCK_M)
    same = (column[None, :] >= first[:, None]) & (column[None, :] < past[:, None])
    same = same.to(tl.float32)
    if Pair is not None:
        same *= tl.load(Pair + column)[None, :]
    total = tl.dot(same, x, input_precision="ieee")
    left = _sum_between(X, Pair, Sums, tl.load(First + start), start, k, D, BLOCK_M)
    total += tl.where(first < start, 1.0, 0.0)[:, None] * left[None, :]
    end = tl.minimum(start + BLOCK_M, live)
    right = _sum_between(X, Pair, Sums, end, tl.load(Past + end - 1), k, D, BLOCK_M)
    return total + tl.where(past > end, 1.0, 0.0)[:, None] * right[None, :]


@triton.jit
def class_cosines_kernel(
    X,
    Sums,
    First,
    Past,
    Live,
    Slots,  # [D / BLOCK_D, N padded]
    n_padded,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Sum each row's cosines with its positives, over some of the columns, by its class's sum."""
    live = tl.load(Live)
    start = tl.program_id(0) * BLOCK_M
    if start >= live:
        return
    row = start + tl.arange(0, BLOCK_M)
    k = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    x = tl.load(X + row.to(tl.int64)[:, None] * D + k[None, :]).to(tl.float32)
    total = _class_sums(X, None, Sums, First, Past, x, row, start, live, k, D, BLOCK_M)
    cosines = tl.sum(x * (total - x), 1)
    tl.store(Slots + tl.program_id(1).to(tl.int64) * n_padded + row, cosines)


@triton.jit
def class_pull_kernel(
    X,
    Pair,
    Sums,
    First,
    Past,
    Live,
    Gradient,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Subtract Σ (w_i + w_j) x_j over each row's positives from its gradient."""
    live = tl.load(Live)
    start = tl.program_id(0) * BLOCK_M
    if start >= live:
        return
    row = start + tl.arange(0, BLOCK_M)
    k = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    x = tl.load(X + row.to(tl.int64)[:, None] * D + k[None, :]).to(tl.float32)
    pair = tl.load(Pair + row)[:, None]
    total = _class_sums(X, None, Sums, First, Past, x, row, start, live, k, D, BLOCK_M)
    weighted_sums = Sums + tl.num_programs(0).to(tl.int64) * D
    weighted = _class_sums(X, Pair, weighted_sums, First, Past, x, row, start, live, k, D, BLOCK_M)
    at = Gradient + row.to(tl.int64)[:, None] * D + k[None, :]
    tl.store(at, tl.load(at) - pair * (total - x) - (weighted - pair * x))
