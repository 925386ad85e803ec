// SPDX-License-Identifier: Apache-2.0
// Rows against keys of others, both sorted by class: which tiles of keys a block of rows meets, and
// what a tile adds to the rows' sums.
#pragma once

#include "cuda/shapes.h"

namespace pipa::cuda {

// The tiles of one of `splits` shares of all keys.
template <class S>
struct KeyTiles {
  int keys;                  // that count
  Range share, own, shared;  // of keys; own: of the block's classes, shared: of each row's of a
                             // cluster

  PIPA_DEVICE KeyTiles(const int* first,  // of all rows: where the keys of the row's class begin
                       const int* past,   // and end
                       int begin,         // the block's first row
                       int live,          // rows from here on have no class
                       int keys, int split, int splits)
      : keys(keys), share(keys_of(split, splits, keys, S::kColumns)), own{0, 0}, shared{0, 0} {
    constexpr int kAll = S::kCluster * S::kRows;
    const int lead = begin / kAll * kAll;
    if (lead < live) shared = shared_range(first, past, lead, lead + kAll, live);
    if (begin < live) own = class_range(first, past, begin, begin + S::kRows, live);
  }
  // The first tile from `column` on that some row of the cluster does not skip.
  PIPA_DEVICE int next(int column) const { return next_keys(column, S::kColumns, share, shared); }
  // Whether all of a tile counts for all rows.
  PIPA_DEVICE bool whole(int column) const {
    return column + S::kColumns <= keys && !own.meets(column, column + S::kColumns);
  }
};

// Makes e = exp2(scale s - scale + shift) of similarities with keys `column` …, and adds it to the
// rows' sums; 0 for keys that do not count.
template <int kByFma, class S, int kBands, int kEights>
PIPA_DEVICE void add_exponentials(float (&e)[kBands][kEights][4], float (&sums)[kBands][2],
                                  float scale, float shift, const LaneRows<kBands>& mine,
                                  const KeyTiles<S>& tiles, int column) {
  const bool whole = tiles.whole(column);
  PIPA_UNROLL
  for (int m = 0; m < kBands; ++m) PIPA_UNROLL
  for (int n = 0; n < kEights; ++n) PIPA_UNROLL
  for (int i = 0; i < 4; ++i) {
    float value = exp2_shared_out<kByFma>(e[m][n][i] * scale + (shift - scale), 4 * n + i);
    if (!whole) {
      const int k = column + fragment_column(lane(), n, i);
      value = is_negative(mine.same(m, i / 2, k), k, tiles.keys) ? value : 0.0f;
    }
    e[m][n][i] = value;
    sums[m][i / 2] += value;
  }
}

}  // namespace pipa::cuda
