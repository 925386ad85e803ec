// SPDX-License-Identifier: Apache-2.0
// Which rows meet which, in what order, and where their numbers lie: all of the kernels' logic that
// needs no GPU. Kernels and launches call these functions, and so do tests, through
// pipa_fast._host.
#pragma once

#include <cstdint>

#include "cuda/limits.h"

#if defined(__CUDACC__)
#define PIPA_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define PIPA_HOST_DEVICE inline
#endif

namespace pipa::cuda {

constexpr int kRun = 8;          // offsets of a program, which loads its own rows once
constexpr int kMostCluster = 2;  // blocks that meet tiles together

PIPA_HOST_DEVICE constexpr int least(int a, int b) { return a < b ? a : b; }

PIPA_HOST_DEVICE constexpr int blocks_of(int64_t n, int rows) {
  return static_cast<int>((n + rows - 1) / rows);
}

// ---- classes: rows are sorted by them, so that each is a range of columns ----

// Columns low … high.
struct Range {
  int low, high;
  PIPA_HOST_DEVICE bool holds(int column) const { return column >= low && column < high; }
  PIPA_HOST_DEVICE bool meets(int begin, int end) const { return begin < high && end > low; }
};

// Columns of the classes of rows begin … end, of which the first takes part.
PIPA_HOST_DEVICE Range class_range(const int* first,  // of each row: where its class begins
                                   const int* past,   // and ends
                                   int begin, int end, int live) {
  return {first[begin], past[least(end, live) - 1]};
}

// Columns that are of the class of each of them: none where there are several classes.
PIPA_HOST_DEVICE Range shared_range(const int* first, const int* past, int begin, int end,
                                    int live) {
  return {first[least(end, live) - 1], past[begin]};
}

// Columns among which some do not count in the denominator of rows begin … end: of their classes,
// or, in the form `all`, themselves.
PIPA_HOST_DEVICE Range own_range(const int* first, const int* past, bool all_form, int begin,
                                 int end, int live) {
  return all_form ? Range{begin, least(end, live)} : class_range(first, past, begin, end, live);
}

// The whole units of columns that a range meets, as far as there are rows that take part.
PIPA_HOST_DEVICE Range rounded(Range range, int unit, int live) {
  return {range.low / unit * unit, least((range.high + unit - 1) / unit * unit, live)};
}

// The tiles of a block's own columns, of which every kParts-th is a part's.
struct OwnTiles {
  int size, begin, end;  // columns of a tile, and of all but those that are left out
  int gap_at, gap;       // columns that are left out, and how many

  PIPA_HOST_DEVICE int first(int part) const { return begin + part * size; }
  PIPA_HOST_DEVICE int next(int at) const { return at + kParts * size; }
  PIPA_HOST_DEVICE int column(int at) const { return at < gap_at ? at : at + gap; }
};

// Those of the units that `own` meets. Tiles in `shared` are left out: where all pairs are of one
// class, none is a negative.
PIPA_HOST_DEVICE OwnTiles own_tiles(Range own, Range shared, int unit, int size, int live) {
  const Range columns = rounded(own, unit, live);
  const int past = shared.high < live ? shared.high / size * size : live;
  const int at = blocks_of(shared.low, size) * size, gap = past > at ? past - at : 0;
  return {size, columns.low, columns.high - gap, at, gap};
}

// Whether a column counts in a row's denominator, or is a positive of it. `same`: it is in the
// range of the row's class.
PIPA_HOST_DEVICE bool is_negative(bool same, int column, int live) {
  return column < live && !same;
}
PIPA_HOST_DEVICE bool in_denominator(bool all_form, bool same, int row, int column, int live) {
  return all_form ? column < live && column != row : is_negative(same, column, live);
}
PIPA_HOST_DEVICE bool is_positive(bool same, int row, int column) { return same && column != row; }

// ---- pixel contrast: blocks of rows around a circle ----
//
// Block I meets blocks I + shift, shift = 1 … past_shift, so that each pair meets once, but for
// opposite blocks, which would meet twice: that pair is left to the one that comes first.
//
// A cluster is `cluster` blocks that follow one another and meet the same tiles, which are then
// copied once for all of them. What it meets is told by the offset from its first block: a shift
// that is less by one for each block that comes later.

PIPA_HOST_DEVICE constexpr int past_shift(int blocks) { return blocks / 2 + 1; }

// Offsets are 1 … past_offset.
PIPA_HOST_DEVICE constexpr int past_offset(int blocks, int cluster) {
  return blocks > 1 ? past_shift(blocks) + cluster - 1 : 1;
}

PIPA_HOST_DEVICE int other_block(int block, int shift, int blocks) {
  const int other = block + shift;
  return other < blocks ? other : other - blocks;
}

PIPA_HOST_DEVICE bool left_to_other(int block, int shift, int blocks) {
  return 2 * shift == blocks && block >= shift;
}

// Offsets of a launch's program.
PIPA_HOST_DEVICE Range offsets_of(int program, int first_offset, int past_offset) {
  const int low = first_offset + program * kRun;
  return {low, least(low + kRun, past_offset)};
}

// The tiles that a program of a cluster meets, rows / columns for each of its offsets, by their
// numbers. Those of blocks that one leaves to sum_mixed_kernel, or to the other one, it passes
// over.
template <int kCluster>
struct ApartTiles {
  static_assert(kCluster <= kMostCluster);
  int rows, columns;  // of a block, of a tile
  int block, blocks;  // the cluster's first, which has rows that take part, and all
  Range offsets;
  Range own[kCluster];  // own_range of each block's rows
  int live;

  PIPA_HOST_DEVICE int of_offset() const { return rows / columns; }
  PIPA_HOST_DEVICE int end() const { return (offsets.high - offsets.low) * of_offset(); }
  PIPA_HOST_DEVICE int offset(int index) const { return offsets.low + index / of_offset(); }
  // Of the cluster's member-th block; 0 is the block itself, which `own` leaves out.
  PIPA_HOST_DEVICE int shift(int index, int member) const { return offset(index) - member; }
  PIPA_HOST_DEVICE int column(int index) const {
    return other_block(block, offset(index), blocks) * rows + index % of_offset() * columns;
  }
  PIPA_HOST_DEVICE bool meets(int index, int member) const {
    const int from = block + member, by = shift(index, member);
    if (kCluster > 1 && (from * rows >= live || by >= past_shift(blocks))) return false;
    const int at = other_block(from, by, blocks) * rows, past = least(at + rows, live);
    if (left_to_other(from, by, blocks) || column(index) >= live) return false;
    // at an index that varies, the array would leave the registers
    return member == 0 ? !own[0].meets(at, past) : !own[kCluster - 1].meets(at, past);
  }
  // The first from `index` on that some block meets; end() where there is none.
  PIPA_HOST_DEVICE int next(int index) const {
    for (; index < end(); ++index)
      for (int member = 0; member < kCluster; ++member)
        if (meets(index, member)) return index;
    return index;
  }
};

// Slots of [padded] floats to which sums for the denominators are added. In a launch of `width`
// offsets from first_offset on, no two programs add to the same number of a slot.
struct Slots {
  int width;  // of a launch
  int count;  // of all slots
};

// The last blocks of clusters meet shifts that are less than the launch's first offset.
PIPA_HOST_DEVICE int slot_of_shift(int shift, int first_offset) {
  return shift - first_offset + kMostCluster - 1;
}
PIPA_HOST_DEVICE int slot_of_program(int program, int width) {
  return slot_of_shift(width, 0) + program;
}
PIPA_HOST_DEVICE int slot_of_part(int part, int width) {
  return slot_of_program(blocks_of(width, kRun), width) + part;
}

// As many offsets in a launch as a row has columns bound the memory by that of the rows.
PIPA_HOST_DEVICE Slots slots_of(int64_t n, int rows, int columns) {
  const int most = past_offset(blocks_of(n, rows), kMostCluster) - 1;
  const int width = least(most, columns > kRun ? columns : kRun);
  return {width, slot_of_part(kParts, width)};
}

// ---- keys of others, in shares ----

// Keys of the split-th of `splits` shares, in whole tiles.
PIPA_HOST_DEVICE Range keys_of(int split, int splits, int keys, int columns) {
  const int64_t tiles = blocks_of(keys, columns);
  const int low = static_cast<int>(tiles * split / splits) * columns;
  const int high = static_cast<int>(tiles * (split + 1) / splits) * columns;
  return {low, least(high, keys)};
}

// The first tile of a share from `column` on that some row of a block does not skip. shared: the
// keys that belong to the class of each of its rows.
PIPA_HOST_DEVICE int next_keys(int column, int columns, Range share, Range shared) {
  while (column < share.high && column >= shared.low &&
         least(column + columns, share.high) <= shared.high)
    column += columns;
  return column;
}

// ---- fragments and shared memory ----

// The row, and the column, of place 0 … 3 of a fragment [16, 8] that a lane holds: `half` is
// place / 2.
PIPA_HOST_DEVICE int fragment_row(int lane, int band, int half) {
  return 16 * band + 8 * half + lane / 4;
}
PIPA_HOST_DEVICE int fragment_column(int lane, int eight, int place) {
  return 8 * eight + 2 * (lane % 4) + place % 2;
}

// Offset in its row of a piece of 16 bytes: pieces are swapped within each 128 bytes, so that eight
// rows' pieces of one column lie in different banks.
PIPA_HOST_DEVICE int swapped(int row, int piece) { return (piece ^ (row & 7)) * 16; }

// Where pairs of pieces lie that a lane reads one after another, of a row whose last three bits are
// the lane's own: four offsets, and steps of 128 bytes that an instruction holds.
struct Pieces {
  int offset[4];

  PIPA_HOST_DEVICE Pieces(int row, int half)  // which of a pair's two pieces
      : offset{swapped(row, half), swapped(row, 2 + half), swapped(row, 4 + half),
               swapped(row, 6 + half)} {}
  PIPA_HOST_DEVICE int at(int pair) const { return pair / 4 * 128 + offset[pair % 4]; }
};

}  // namespace pipa::cuda
