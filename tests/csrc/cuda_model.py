# SPDX-License-Identifier: Apache-2.0
"""The algorithm of the CUDA kernels, line by line, in float64: `torch.ops.pipa_fast_cuda` on a CPU.

What a program's threads do at once is one line here; what programs do one after another, in which
order, and where each sum goes is as in csrc/cuda/*_kernels.h, for tiles of any size.
"""

import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import torch
from torch import Tensor

from pipa_fast._host import cuda


def rows_of(
    x, first, past, live, keys=None, live_keys=None, all_form=False, scale=0.0, number=0
) -> SimpleNamespace:
    """The first arguments of a kernel. `count`: keys that take part."""
    itself = keys is None
    keys, count = (x, live) if itself else (keys, live_keys)
    where = {"first": first.tolist(), "past": past.tolist(), "live": int(live)}
    others = {"keys": keys.double(), "count": int(count), "itself": itself}
    return SimpleNamespace(x=x.double(), **where, **others, all_form=all_form, scale=scale)


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64)


def load(x: Tensor, begin: int, count: int, live: int) -> Tensor:
    """Rows begin … begin + count; what is past `live` is 0."""
    tile = zeros(count, x.shape[1])
    there = x[begin : max(begin, min(begin + count, live))]
    tile[: len(there)] = there
    return tile


class Model:
    """Blocks of `rows` meet tiles of `columns`, a program makes `part` columns of a gradient.

    cluster: blocks that meet the same tiles.
    """

    def __init__(self, rows: int = 16, columns: int = 8, part: int = 16, cluster: int = 1) -> None:
        self.rows, self.columns, self.part, self.cluster = rows, columns, part, cluster

    def _mask(
        self, counts: Callable[..., bool], begin: int, column: int, r: SimpleNamespace
    ) -> Tensor:
        """Which of a tile count: counts(same class, the key that the row is or -1, key)."""
        found = [
            [counts(cuda.holds(own, j), itself, j) for j in range(column, column + self.columns)]
            for i in range(begin, begin + self.rows)
            for own in [(r.first[i], r.past[i]) if i < r.live else (0, 0)]
            for itself in [i if r.itself else -1]
        ]
        return torch.tensor(found)

    def _own(self, r: SimpleNamespace, begin: int, all_form: bool = False) -> tuple[int, int]:
        return cuda.own_range(r.first, r.past, all_form, begin, begin + self.rows, r.live)

    def _shared(self, r: SimpleNamespace, begin: int, cluster: int = 1) -> tuple[int, int]:
        return cuda.shared_range(r.first, r.past, begin, begin + cluster * self.rows, r.live)

    def pixel_contrast_denominators(self, *problem) -> Tensor:
        r, padded = rows_of(*problem), len(problem[1])
        if not r.itself:
            sums = zeros(cuda.PARTS, padded)
            for part in range(cuda.PARTS):
                for begin, _, e in self._exponentials(r, part, cuda.PARTS):
                    sums[part, begin : begin + self.rows] += e.sum(1)
            return sums
        blocks = cuda.blocks_of(len(r.x), self.rows)
        width, count = cuda.slots_of(len(r.x), self.rows, r.x.shape[1])
        slots, end = zeros(count, padded), cuda.past_offset(blocks, self.cluster)
        for first in range(1, end, max(width, 1)):
            for program in range(cuda.blocks_of(width, cuda.RUN)):
                offsets = cuda.offsets_of(program, first, min(first + width, end))
                own_slot = slots[cuda.slot_of_program(program, width)]
                for block in range(blocks if offsets[0] < offsets[1] else 0):
                    self._sum_apart(r, slots, own_slot, block, blocks, offsets, first)
        shared = (lambda _: (0, 0)) if r.all_form else lambda begin: self._shared(r, begin)
        for part, begin, column, s in self._mixed(r, self.rows, r.all_form, shared):
            counts = lambda *at: cuda.in_denominator(r.all_form, *at, r.live)  # noqa: E731
            e = torch.exp2(s * r.scale - r.scale).where(self._mask(counts, begin, column, r), 0)
            slots[cuda.slot_of_part(part, width), begin : begin + self.rows] += e.sum(1)
        return slots

    def _sum_apart(self, r, slots, own_slot, block, blocks, offsets, first) -> None:
        begin, size = block * self.rows, (self.rows, self.columns)
        if begin >= r.live:
            return
        own, row_sums = load(r.x, begin, self.rows, r.live), zeros(self.rows)
        lead = begin - begin % (self.cluster * self.rows)
        left_out = [
            self._own(r, at, r.all_form) if at < r.live else (0, 0)
            for at in range(lead, lead + self.cluster * self.rows, self.rows)
        ]
        for shift, column in cuda.apart_tiles(*size, block, blocks, offsets, left_out, r.live):
            e = torch.exp2(own @ load(r.x, column, self.columns, r.live).T * r.scale - r.scale)
            e[max(0, r.live - begin) :], e[:, max(0, r.live - column) :] = 0, 0
            slot = slots[cuda.slot_of_shift(shift, first)]
            slot[column : column + self.columns] += e.sum(0)
            row_sums += e.sum(1)
        own_slot[begin : begin + self.rows] += row_sums

    def _mixed(
        self, r: SimpleNamespace, unit: int, all_form: bool, shared: Callable[[int], tuple]
    ) -> Iterator[tuple]:
        """Part, block's first row, tile's first column and similarities: of blocks' own columns.

        Tiles within the columns shared(block's first row) are left out.
        """
        for part in range(cuda.PARTS):
            for begin in range(0, r.live, self.rows):
                own = load(r.x, begin, self.rows, r.live)
                of_own, size = self._own(r, begin, all_form), (unit, self.columns)
                for column in cuda.own_tiles(of_own, shared(begin), *size, r.count, part):
                    yield part, begin, column, own @ load(r.keys, column, self.columns, r.count).T

    def _exponentials(
        self, r: SimpleNamespace, split: int, splits: int, shift: float = 0.0
    ) -> Iterator[tuple]:
        """Block's first row, keys of a tile and e of both: of a share of others' keys."""
        share = cuda.keys_of(split, splits, r.count, self.columns)
        for begin in range(0, r.live, self.rows):
            own, shared, rows = (0, 0), (0, 0), load(r.x, begin, self.rows, r.live)
            if not r.all_form:
                own = self._own(r, begin)
                lead = begin - begin % (self.cluster * self.rows)
                shared = self._shared(r, lead, self.cluster)
            for column in cuda.key_tiles(self.columns, share, shared):
                other, end = load(r.keys, column, self.columns, r.count), column + self.columns
                e = torch.exp2(rows @ other.T * r.scale + (shift - r.scale))
                if end > r.count or cuda.meets(own, column, end):
                    e = e.where(self._mask(self._is_negative(r), begin, column, r), 0)
                yield begin, other, e

    def _is_negative(self, r: SimpleNamespace) -> Callable[..., bool]:
        return lambda same, _, j: cuda.is_negative(same and not r.all_form, j, r.count)

    def pixel_contrast_positives(self, *arguments) -> Tensor:
        *problem, z = arguments
        r, out = rows_of(*problem), zeros(cuda.PARTS, 2, len(z))
        for part, begin, column, s in self._mixed(r, self.columns, False, lambda _: (0, 0)):
            at = slice(begin, begin + self.rows)
            exponent, own_z = s * r.scale - r.scale, z[at, None].double()
            e = torch.exp2(exponent)
            share = own_z.minimum(e) / (own_z + e)
            past = (own_z.log2() - exponent).where(own_z > e, 0)
            losses = past - torch.log1p(-share) / math.log(2)
            slopes = 1 / (own_z + e)
            mask = self._mask(cuda.is_positive, begin, column, r)
            for kind, values in enumerate((losses, slopes)):
                out[part, kind, at] += values.where(mask, 0).sum(1)
        return out

    def pixel_contrast_cosines(self, *problem) -> Tensor:
        r, out = rows_of(*problem), zeros(len(problem[1]))
        size = self.rows
        tiles = [r.keys[at : min(at + size, r.count)].sum(0) for at in range(0, len(r.keys), size)]
        for i in range(r.live):
            low, high = r.first[i], r.past[i]
            left, right = -(-low // size), high // size
            if left < right:
                loose = r.keys[low : left * size].sum(0) + r.keys[right * size : high].sum(0)
                total = loose + sum(tiles[left:right])
            else:
                total = r.keys[low:high].sum(0)
            out[i] = r.x[i] @ (total - r.x[i] if r.itself else total)
        return out

    def pixel_contrast_gradient(self, *arguments) -> Tensor:
        *problem, (z, u, pair), of_keys, order, factor, _ = arguments
        r, out = rows_of(*problem), torch.full_like(problem[0], torch.nan).double()
        key_z, key_u, key_pair = (z, u, pair) if r.itself else of_keys
        for begin in range(0, len(r.x), self.rows):
            own, total = load(r.x, begin, self.rows, r.live), zeros(self.rows, r.x.shape[1])
            i = torch.arange(begin, begin + self.rows)[:, None]
            for column in range(0, r.count if begin < r.live else 0, self.columns):
                other = load(r.keys, column, self.columns, r.count)
                j = torch.arange(column, column + self.columns)
                e = torch.exp2(own @ other.T * r.scale - r.scale)
                g = e * (u[i] + key_u[j])
                if cuda.meets(self._own(r, begin), column, column + self.columns):
                    pull = pair[i] * z[i] / (z[i] + e) + key_pair[j] * key_z[j] / (key_z[j] + e)
                    marked = g - pair[i] - key_pair[j] if r.all_form else -pull
                    same = self._mask(lambda same, *_: same, begin, column, r)
                    g = marked.where(same, g)
                    if r.itself:
                        g = g.where(i != j, 0)
                for part in range(0, r.x.shape[1], self.part):
                    total[:, part : part + self.part] += g @ other[:, part : part + self.part]
            for row in range(begin, min(begin + self.rows, len(r.x))):
                out[order[row]] = total[row - begin] * factor if row < r.live else 0
        return out

    def patch_consistency_sums(
        self, a, keys, first, past, live, live_keys, scale, shift, number, splits
    ) -> tuple[Tensor, Tensor]:
        r = rows_of(a, first, past, live, keys, live_keys, scale=scale)
        z, o = zeros(splits, len(a)), zeros(splits, *a.shape)
        for split in range(splits):
            for begin, other, e in self._exponentials(r, split, splits, shift):
                at = slice(begin, min(begin + self.rows, r.live))
                z[split, at] += e.sum(1)[: at.stop - begin]
                o[split, at] += (e @ other)[: at.stop - begin]
        return z.float(), o.float()
