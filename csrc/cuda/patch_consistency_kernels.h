// SPDX-License-Identifier: Apache-2.0
// Patch consistency on GPUs: attention whose values are its keys, so that the slope comes with Z.
//
// Anchors and keys are sorted by class, those that count for nothing last. The keys of anchor i's
// class are first[i] … past[i], which are left out of its sums
//   Z_i = Σ e_ik,  O_i = Σ e_ik k,  e_ik = exp2(scale a_i·k - scale + shift).
#pragma once

#include "cuda/keys.h"
#include "cuda/patch_consistency.h"

namespace pipa::cuda {

// Bytes of shared memory: own anchors and two tiles of keys.
template <class S>
constexpr int attend_memory() {
  return S::kOwnBytes + 2 * S::kOtherBytes;
}

// What a warp has of its anchors: sums, and columns `part` ... of O, of one split of the keys.
template <Number kNumber, int kBands, int kEights>
PIPA_DEVICE void store_attended(const float (&sum)[kBands][kEights][4],
                                const float (&sums)[kBands][2], const PatchConsistency& anchors,
                                const LaneRows<kBands>& mine, int part, int split, int live,
                                float* z, float* o) {
  const int columns = anchors.row_bytes / kBytes<kNumber>;
  PIPA_UNROLL
  for (int m = 0; m < kBands; ++m) PIPA_UNROLL
  for (int h = 0; h < 2; ++h) {
    const int64_t at = mine.row[m][h];
    if (at >= anchors.n) continue;
    const int64_t to = split * anchors.n + at;
    const bool counts = at < live;  // others may be NaN
    if (part == 0 && lane() % 4 == 0) z[to] = counts ? sums[m][h] : 0.0f;
    PIPA_UNROLL
    for (int n = 0; n < kEights; ++n) {
      const int d = part + fragment_column(lane(), n, 0);
      if (d >= columns) continue;
      o[to * columns + d] = counts ? sum[m][n][2 * h] : 0.0f;
      o[to * columns + d + 1] = counts ? sum[m][n][2 * h + 1] : 0.0f;
    }
  }
}

// Program (I, s · parts + p): block I of anchors against the s-th share of the keys, of whose sums
// O it makes columns kPart p ….
template <class S, Number kNumber>
PIPA_KERNEL(S::kThreads, S::blocks(kNumber))
attend_kernel(PatchConsistency anchors, int parts,
              float* z,    // [splits, n], 0 for anchors that do not count
              float* o) {  // [splits, n, columns]
  constexpr int kEights = S::kColumns / 8;
  const int live = *anchors.live, keys = *anchors.live_keys, begin = block_x() * S::kRows;
  const int part = block_y() % parts * S::kPart, split = block_y() / parts;
  const KeyTiles<S> tiles(anchors.first, anchors.past, begin, live, keys, split,
                          blocks_y() / parts);
  char* own = shared_memory();
  char* others = own + S::kOwnBytes;  // two tiles
  const int row = warp() * 16 * S::kBands;
  float sum[S::kBands][S::kPart / 8][4] = {}, sums[S::kBands][2] = {};
  const LaneRows<S::kBands> mine(anchors.first, anchors.past, begin + row, live);

  const int column = tiles.next(tiles.share.low), high = tiles.share.high;
  if (begin < live && column < high) {
    auto load = [&](int at, int turn) {
      load_rows<S::kRowBytes, S::kColumns, S::kThreads>(others + turn * S::kOtherBytes,
                                                        anchors.keys, at, keys, anchors.row_bytes);
    };
    auto next = [&](int at) { return tiles.next(at + S::kColumns); };
    auto work = [&](int at, int turn) {
      float e[S::kBands][kEights][4];
      const char* other = others + turn * S::kOtherBytes;
      similarities<kNumber, S::kRowBytes, S::kBands, S::kColumns>(e, own, row, other);
      add_exponentials<0>(e, sums, anchors.scale, anchors.shift, mine, tiles, at);
      add_product<kNumber, S::kRowBytes, S::kBands, S::kColumns, S::kPart>(sum, e, other, part);
      sync_threads();  // the tile after the next may overwrite this one
    };
    load_rows<S::kRowBytes, S::kRows, S::kThreads>(own, anchors.a, begin, live, anchors.row_bytes);
    for_tiles(column, high, load, next, work);
  }

  add_lanes_of_rows(sums);
  store_attended<kNumber>(sum, sums, anchors, mine, part, split, live, z, o);
}

}  // namespace pipa::cuda
