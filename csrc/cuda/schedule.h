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

constexpr int kRun = 8;  // shifts of a program, which loads its own rows once

PIPA_HOST_DEVICE int least(int a, int b) { return a < b ? a : b; }

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

PIPA_HOST_DEVICE constexpr int past_shift(int blocks) { return blocks / 2 + 1; }

PIPA_HOST_DEVICE int other_block(int block, int shift, int blocks) {
  const int other = block + shift;
  return other < blocks ? other : other - blocks;
}

PIPA_HOST_DEVICE bool left_to_other(int block, int shift, int blocks) {
  return 2 * shift == blocks && block >= shift;
}

// Shifts of a launch's program.
PIPA_HOST_DEVICE Range shifts_of(int program, int first_shift, int past_shift) {
  const int low = first_shift + program * kRun;
  return {low, least(low + kRun, past_shift)};
}

// The tiles that a program meets, rows / columns for each of its shifts, by their numbers: those of
// blocks that its own one leaves to sum_mixed_kernel, or to the other one, are passed over.
struct ApartTiles {
  int rows, columns;  // of a block, of a tile
  int block, blocks;
  Range shifts, own;  // own: own_range of the block's rows
  int live;

  PIPA_HOST_DEVICE int of_shift() const { return rows / columns; }
  PIPA_HOST_DEVICE int end() const { return (shifts.high - shifts.low) * of_shift(); }
  PIPA_HOST_DEVICE int shift(int index) const { return shifts.low + index / of_shift(); }
  PIPA_HOST_DEVICE int column(int index) const {
    return other_block(block, shift(index), blocks) * rows + index % of_shift() * columns;
  }
  // The first to be met from `index` on; end() where there is none.
  PIPA_HOST_DEVICE int next(int index) const {
    for (; index < end(); ++index) {
      const int at = other_block(block, shift(index), blocks) * rows;
      const bool left = left_to_other(block, shift(index), blocks);
      if (!left && column(index) < live && !own.meets(at, least(at + rows, live))) break;
    }
    return index;
  }
};

// Slots of [padded] floats to which sums for the denominators are added. In a launch of `width`
// shifts from first_shift on, no two programs add to the same number of a slot.
struct Slots {
  int width;  // of a launch
  int count;  // of all slots
};

PIPA_HOST_DEVICE int slot_of_shift(int shift, int first_shift) { return shift - first_shift; }
PIPA_HOST_DEVICE int slot_of_program(int program, int width) { return width + program; }
PIPA_HOST_DEVICE int slot_of_part(int part, int width) {
  return width + blocks_of(width, kRun) + part;
}

// As many shifts in a launch as a row has columns bound the memory by that of the rows.
PIPA_HOST_DEVICE Slots slots_of(int64_t n, int rows, int columns) {
  const int width = least(blocks_of(n, rows) / 2, columns > kRun ? columns : kRun);
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
