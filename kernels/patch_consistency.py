# SPDX-License-Identifier: Apache-2.0
"""Patch consistency in Triton: attention whose values are its keys, so the slope comes with Z.

N anchors a, M keys k, τ: every anchor keeps Z_i = Σ e_ik and O_i = Σ e_ik k over keys of other
classes, e_ik = exp((a_i·k - 1)/τ), from which _finish makes loss and slope (DESIGN of both:
reference/patch_consistency.py). One sweep over the keys is two products of N·M·D multiply-adds,
and the backward pass is elementwise.

Anchors and keys are visited by ascending class, those that count for nothing first, through the
order that a sort found: nothing is copied, so memory does not grow with the bank. The keys of an
anchor's own class then are one interval, two numbers a row: no label is read in the sweep. A tile
of keys whose interval no anchor of the program touches needs no mask (_sweep, MASKED=False); what
is left, a few tiles at the ends of classes, is added by a second launch, which keeps the first one
free of the mask's registers; tiles that all anchors skip are not visited at all. Past the end of
the keys, the last one stands in, which counts wherever a tile is visited: an ignored one may be
NaN, and an e of 0 would not keep it out.

Where anchors are few, several programs share a tile of them. Each keeps sums of its own, added in
order at the end: results repeat bit by bit. The first adds into the slope's memory, so that beyond
inputs and gradient there are at most 3·N·D floats and some ten words a row.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pipa_fast.kernels import _launch
from pipa_fast.kernels._launch import LN2, LOG2E, Tile, TileRow

# Programs that are wanted: four for each of 132 multiprocessors, for which a class may be absent
# from half of the tiles and still leave two.
PROGRAMS = 528
MAX_SPLITS = 4
# 16-bit floats of e's range: binary16 is normal over 30 octaves. e · 2^15 fits all of them where
# e spans no more; where it does, sums are kept relative to each anchor's largest e.
HEADROOM = 15
OCTAVES = 29
CHUNK = 32  # columns of the first product of float32 at a time
# Of a tile of _finish, 16 a thread: it has up to six in registers, one of each split's slope. 168
# registers are three blocks a multiprocessor.
FINISH_ELEMENTS = 2048

_HALF = "the largest whose sum of keys, e and addresses stay in registers"
_FLOAT = "as _HALF; the first product takes CHUNK columns at a time, or would spill"
TILES = (
    TileRow(90, 64, 2, Tile(64, 64, 4, 4), "two blocks: 176 registers, 24 KiB"),
    TileRow(90, 128, 2, Tile(64, 64, 4, 3), "two blocks: 220 registers, 48 KiB"),
    TileRow(90, 256, 2, Tile(64, 64, 8, 3), _HALF),
    TileRow(90, 512, 2, Tile(32, 32, 8, 2), "64 rows, which HGMMA wants, spill"),
    *(
        TileRow(chip, depth, 2, tile, why)
        for chip in (80, 89)
        for depth, tile, why in (
            (128, Tile(64, 32, 4, 3), "two blocks: 252 registers, 28 KiB; 8 warps spill"),
            (256, Tile(64, 32, 8, 3), _HALF),
            (512, Tile(32, 32, 8, 2), _HALF),
        )
    ),
    *(
        TileRow(chip, depth, 4, tile, _FLOAT)
        for chip in (80, 89, 90)
        for depth, tile in (
            (64, Tile(32, 32, 4, 2)),
            (128, Tile(32, 16, 4, 2)),
            (512, Tile(16, 16, 4, 2)),
        )
    ),
)


@triton.jit
def _tiles(First, Last, begin, end, keys, idle, MASKED: tl.constexpr, BLOCK_J: tl.constexpr):
    """Return which of the tiles of keys, counted from the first that is not idle, are visited.

    Those in [low, high) hold keys of an anchor's class, those in [same, other) nothing else, and
    the last may be ragged. The u-th of `count` is low + u if u < before, then other + u - before,
    and the last of all from `both` on.
    """
    low = (tl.load(First + begin) - idle) // BLOCK_J
    high = tl.cdiv(tl.load(Last + end) - idle, BLOCK_J)
    whole = keys // BLOCK_J
    if MASKED:
        same = tl.cdiv(tl.load(First + end) - idle, BLOCK_J)
        other = tl.maximum((tl.load(Last + begin) - idle) // BLOCK_J, same)
        before = same - low
        both = before + high - other
        count = both + tl.cdiv(keys, BLOCK_J) - tl.maximum(high, whole)
    else:
        before, other = low, high
        count = low + tl.maximum(whole - high, 0)
        both, low = count, 0
    return low, before, other, both, whole, count


# fmt: off
@triton.jit
def _products(
    Anchors, Keys, a, row, column, scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):
    # fmt: on
    """Return keys [BLOCK_J, BLOCK_D] and scale times their cosines [BLOCK_I, BLOCK_J]."""
    d, key_at = tl.arange(0, BLOCK_D), column[:, None] * D
    k = tl.load(Keys + key_at + d[None, :], mask=(d < D)[None, :], other=0.0)
    if CHUNK == BLOCK_D:
        s = tl.dot(a, tl.trans(k), input_precision=PRECISION)
    else:
        s = tl.zeros((a.shape[0], k.shape[0]), tl.float32)
        for c in range(0, BLOCK_D, CHUNK):
            part = c + tl.arange(0, CHUNK)
            inside = (part < D)[None, :]
            x = tl.load(Anchors + row[:, None] * D + part[None, :], mask=inside, other=0.0)
            y = tl.load(Keys + key_at + part[None, :], mask=inside, other=0.0)
            s = tl.dot(x, tl.trans(y), s, input_precision=PRECISION)
    return k, s * scale


# fmt: off
@triton.jit
def _sweep(
    Anchors, Keys,  # [N, D], [M, D]
    Rows, Columns,  # [N], [M] int64, anchors and keys by ascending class
    First, Last,  # [N] int32, where among sorted keys a sorted anchor's class begins and ends
    IdleRows, IdleColumns,  # [] int64, sorted anchors and keys that count for nothing
    Z, Top,  # [S, N] fp32 sums of e · 2^(scale - shift), and each one's shift where RESCALE
    Slope, Work,  # [N, D], [S - 1, N, D] fp32 sums of e times key, of S programs
    N, M, scale, shift,
    MASKED: tl.constexpr, RESCALE: tl.constexpr, HEADROOM: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr,
    CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):
    # fmt: on
    split, splits = tl.program_id(1), tl.num_programs(1)
    idle = tl.load(IdleColumns).to(tl.int32)
    begin = tl.load(IdleRows).to(tl.int32) + tl.program_id(0) * BLOCK_I
    if begin >= N:
        return
    end = tl.minimum(begin + BLOCK_I, N) - 1
    visited = _tiles(First, Last, begin, end, M - idle, idle, MASKED, BLOCK_J)
    low, before, other, both, whole, count = visited
    first, past = split * count // splits, (split + 1) * count // splits
    if MASKED and first == past:
        return
    i, d = begin + tl.arange(0, BLOCK_I), tl.arange(0, BLOCK_D)
    row = tl.load(Rows + i, mask=i < N, other=0)
    at, sums = row[:, None] * D + d[None, :], split.to(tl.int64) * N + row
    real = (i < N)[:, None] & (d < D)[None, :]
    a = tl.load(Anchors + at, mask=real, other=0.0)
    own_first = tl.load(First + i, mask=i < N, other=0)
    own_last = tl.load(Last + i, mask=i < N, other=0)
    Output = Slope if split == 0 else Work + (split - 1).to(tl.int64) * N * D
    z = tl.zeros((BLOCK_I,), tl.float32)
    o = tl.zeros((BLOCK_I, BLOCK_D), tl.float32)
    top = tl.zeros((BLOCK_I,), tl.float32) - 2 * scale
    if MASKED:  # what the other launch has summed
        z = tl.load(Z + sums, mask=i < N, other=0.0)
        o = tl.load(Output + at, mask=real, other=0.0)
        if RESCALE:
            top = tl.load(Top + sums, mask=i < N, other=0.0)

    for u in range(first, past):
        t = tl.where(u < before, low + u, tl.where(u < both, other + u - before, whole))
        j = idle + t * BLOCK_J + tl.arange(0, BLOCK_J)
        column = tl.load(Columns + tl.minimum(j, M - 1))
        k, s = _products(Anchors, Keys, a, row, column, scale, D, BLOCK_D, CHUNK, PRECISION)
        if MASKED:
            kept = (j[None, :] < own_first[:, None]) | (j[None, :] >= own_last[:, None])
            s = tl.where(kept & (j < M)[None, :], s, -float("inf"))
        if RESCALE:
            higher = tl.maximum(top, tl.max(s, 1))
            z, o = z * tl.exp2(top - higher), o * tl.exp2(top - higher)[:, None]
            top = higher
        e = tl.exp2(s - (top - HEADROOM)[:, None]) if RESCALE else tl.exp2(s - shift)
        z += tl.sum(e, 1)
        o = tl.dot(e.to(k.dtype), k, o, input_precision=PRECISION)
    tl.store(Z + sums, z, mask=i < N)
    tl.store(Output + at, o, mask=real)
    if RESCALE:
        tl.store(Top + sums, top, mask=i < N)


@triton.jit
def _softplus_and_sigmoid(gap):
    """Return log(1 + 2^gap), also where it is small, and 2^gap / (1 + 2^gap)."""
    w = tl.exp2(-tl.abs(gap))
    # log(u) misses by what u = 1 + w has lost of w, which the quotient makes up for.
    u = 1.0 + w
    log_u = tl.where(u == 1.0, w, tl.log(u) * (w / tl.where(u == 1.0, 1.0, u - 1.0)))
    softplus = tl.maximum(gap, 0.0) * LN2 + log_u
    return softplus, tl.where(gap > 0, 1.0, w) / u


# fmt: off
@triton.jit
def _finish(
    Anchors,  # [N, D]
    Positives,  # [N, D]
    Labels,  # [N] int64, negative: counts for nothing
    Weights,  # [N] fp32, or Labels where there are none
    Total,  # [] Σ w of those that count
    Z, Top,  # [S, N]
    Slope,  # [N, D] fp32, on its way in O of the first program
    Work,  # [S - 1, N, D]
    Losses,  # [N] fp32, each anchor's part
    N, scale, shift, inverse,  # inverse: 1/τ
    S: tl.constexpr, RESCALE: tl.constexpr, HEADROOM: tl.constexpr, HAS_WEIGHTS: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_I: tl.constexpr,
):
    # fmt: on
    i, d = tl.program_id(0) * BLOCK_I + tl.arange(0, BLOCK_I), tl.arange(0, BLOCK_D)
    at = i.to(tl.int64)[:, None] * D + d[None, :]
    live = (i < N) & (tl.load(Labels + i, mask=i < N, other=-1) >= 0)
    weight = tl.load(Weights + i, mask=live, other=0.0) if HAS_WEIGHTS else live.to(tl.float32)
    real = live[:, None] & (d < D)[None, :]
    z = tl.load(Z + i, mask=live, other=0.0)
    o = tl.load(Slope + at, mask=real, other=0.0)
    top = tl.load(Top + i, mask=live, other=0.0) if RESCALE else z
    for split in tl.static_range(1, S):
        more_z = tl.load(Z + split * N + i, mask=live, other=0.0)
        Other = Work + tl.full((), split - 1, tl.int64) * N * D
        more_o = tl.load(Other + at, mask=real, other=0.0)
        if RESCALE:
            other = tl.load(Top + split * N + i, mask=live, other=0.0)
            higher = tl.maximum(top, other)
            fade, more = tl.exp2(top - higher), tl.exp2(other - higher)
            z, o = z * fade + more_z * more, o * fade[:, None] + more_o * more[:, None]
            top = higher
        else:
            z, o = z + more_z, o + more_o

    a = tl.load(Anchors + at, mask=real, other=0.0).to(tl.float32)
    p = tl.load(Positives + at, mask=real, other=0.0).to(tl.float32)
    own = tl.sum(a * p, 1) * scale
    own -= top - HEADROOM if RESCALE else shift
    # An infinite cosine may leave Z = 0, or no loss: what is not finite makes its anchor's own NaN.
    own += tl.sum(0.0 * a + 0.0 * p + 0.0 * o, 1)
    # L_i = log(1 + Z/e), σ = Z/(Z + e), from log2(Z/e). An anchor without negatives has Z = 0; NaN
    # is not 0, and stays.
    some = (z != 0) | (own != own)
    z = tl.where(some, z, 1.0)
    loss, sigma = _softplus_and_sigmoid(tl.log2(z) - own)
    total = tl.load(Total)
    share = tl.where(some, weight / tl.where(total > 0, total, 1.0), 0.0)
    tl.store(Losses + i, tl.where(some, share * loss, 0.0), mask=i < N)
    slope = (share * sigma * inverse)[:, None] * (o / z[:, None] - p)
    inside = (i < N)[:, None] & (d < D)[None, :]
    tl.store(Slope + at, tl.where(some[:, None], slope, 0.0), mask=inside)


class Exponent(NamedTuple):
    """How e = exp((a·k - 1)/τ) is kept: e · 2^(scale - shift) = 2^(scale · a·k - shift)."""

    scale: float  # log2(e)/τ
    shift: float
    headroom: int  # octaves above 1 that the kept values reach up to
    rescale: bool  # relative to each anchor's largest e, not to 1

    @classmethod
    def of(cls, dtype: torch.dtype, temperature: float) -> "Exponent":
        """Return how the products' dtype holds the e of a temperature."""
        scale = LOG2E / temperature
        headroom = HEADROOM if dtype == torch.float16 else 0
        return cls(scale, scale - headroom, headroom, headroom > 0 and 2 * scale > OCTAVES)


class Sums(NamedTuple):
    """What _sweep leaves to _finish."""

    z: Tensor  # [S, N]
    top: Tensor  # [S, N], or no more than a number where it is not needed
    slope: Tensor  # [N, D]
    work: Tensor  # [S - 1, N, D]


def _sweep_keys(
    anchors: Tensor,  # [N, D]
    bank: Tensor,  # [M, D]
    labels: Tensor,  # [N] int64, negative: counts for nothing
    bank_labels: Tensor,  # [M] int64
    exponent: Exponent,
    slope: Tensor,  # [N, D] fp32, written
) -> Sums:
    """Return each anchor's sums over the keys of other classes."""
    (n, dim), m, dtype = anchors.shape, bank.shape[0], anchors.dtype
    depth = _launch.padded_depth(dim)
    tile = _launch.choose_tile(TILES, _launch.capability(anchors.device), depth, dtype)
    tiles = triton.cdiv(n, tile.block_m)
    wanted = min(MAX_SPLITS, triton.cdiv(PROGRAMS, tiles), triton.cdiv(m, tile.block_n))
    z = slope.new_empty(wanted, n)
    top = slope.new_empty((wanted, n) if exponent.rescale else (1, 1))
    sums = Sums(z, top, slope, slope.new_empty(wanted - 1, n, dim))
    classes, rows = labels.sort(stable=True)
    key_classes, columns = bank_labels.sort(stable=True)
    first = torch.searchsorted(key_classes, classes, out_int32=True)
    last = torch.searchsorted(key_classes, classes, out_int32=True, right=True)
    idle = [torch.searchsorted(each, 0) for each in (classes, key_classes)]
    for masked in (False, True):
        _launch.launch(
            _sweep,
            (tiles, wanted),
            tile,
            *(anchors, bank, rows, columns, first, last, *idle, *sums),
            *(n, m, exponent.scale, exponent.shift),
            MASKED=masked,
            RESCALE=exponent.rescale,
            HEADROOM=exponent.headroom,
            D=dim,
            BLOCK_D=depth,
            BLOCK_I=tile.block_m,
            BLOCK_J=tile.block_n,
            CHUNK=min(CHUNK, depth) if dtype == torch.float32 else depth,
            PRECISION=_launch.precision(dtype),
        )
    return sums


def forward(
    anchors: Tensor,  # [N, D] unit rows
    positives: Tensor,  # [N, D]
    bank: Tensor,  # [M, D]
    anchor_labels: Tensor,  # [N] int64, negative: no anchor
    bank_labels: Tensor,  # [M] int64, negative: no key
    weights: Tensor | None,  # [N] fp32
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Return the loss [] and its slope dL/danchors [N, D] in float32."""
    n, dim = anchors.shape
    slope = torch.empty(n, dim, dtype=torch.float32, device=anchors.device)
    if n == 0 or bank.shape[0] == 0:
        return slope.new_zeros(()), slope.zero_()
    anchors, positives, bank = (t.contiguous() for t in (anchors, positives, bank))
    anchor_labels = anchor_labels.contiguous()
    live = anchor_labels >= 0
    if weights is None:
        total = live.sum()
    else:
        weights = weights.contiguous()
        live &= weights != 0
        total = torch.where(live, weights, 0).sum()
    exponent = Exponent.of(anchors.dtype, temperature)
    losses = slope.new_empty(n)
    depth = _launch.padded_depth(dim)
    tile = Tile(max(FINISH_ELEMENTS // depth, 1), depth, 4, 1, registers=168)
    with _launch.on_device(anchors):
        labels = torch.where(live, anchor_labels, -1)
        sums = _sweep_keys(anchors, bank, labels, bank_labels, exponent, slope)
        _launch.launch(
            _finish,
            (triton.cdiv(n, tile.block_m),),
            tile,
            *(anchors, positives, labels, labels if weights is None else weights, total, *sums),
            *(losses, n, exponent.scale, exponent.shift, 1 / temperature),
            S=len(sums.z),
            RESCALE=exponent.rescale,
            HEADROOM=exponent.headroom,
            HAS_WEIGHTS=weights is not None,
            D=dim,
            BLOCK_D=depth,
            BLOCK_I=tile.block_m,
        )
    return losses.sum(), slope
