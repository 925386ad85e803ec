// SPDX-License-Identifier: Apache-2.0
// Pixel contrast on GPUs: the kernels. Formulas as in pipa_fast/reference/pixel_contrast.py.
//
// Rows meet keys: themselves, or rows of others. Both are sorted by class, those that take no part
// last. The keys of row i's class are first[i] … past[i], so that "the same class" is a range of
// columns, and a block of rows shares no class with keys that do not meet its range.
// e_ij = exp2(scale x_i·k_j - scale), scale = log2(e) / temperature.
//
// Every sum is taken in an order that depends on the shapes alone: the same bits in every run.
#pragma once

#include "cuda/keys.h"
#include "cuda/pixel_contrast.h"

namespace pipa::cuda {

PIPA_DEVICE Range class_range(const PixelContrast& rows, int begin, int end, int live) {
  return class_range(rows.first, rows.past, begin, end, live);
}
PIPA_DEVICE Range own_range(const PixelContrast& rows, int begin, int end, int live) {
  return own_range(rows.first, rows.past, rows.all_form, begin, end, live);
}
// The key that a row is: none of others'.
PIPA_DEVICE int key_of(const PixelContrast& rows, int row) { return rows.itself ? row : -1; }

// Bytes of shared memory: own rows, two tiles of others, and floats beside them.
template <class S>
constexpr int sum_memory() {
  return S::kOwnBytes + 2 * S::kOtherBytes + S::kWarps * S::kColumns * 4;
}
template <class S>
constexpr int mixed_memory() {
  return S::kOwnBytes + S::kOtherBytes;
}
template <class S>
constexpr int others_memory() {
  return S::kOwnBytes + 2 * S::kOtherBytes;
}
template <class S>
constexpr int gradient_memory() {
  return S::kOwnBytes + 2 * S::kOtherBytes + 2 * S::kColumns * 4;
}

template <class S>
PIPA_DEVICE void load_own(const PixelContrast& rows, char* own, int begin, int live) {
  load_rows<S::kRowBytes, S::kRows, S::kThreads>(own, rows.x, begin, live, rows.row_bytes);
}
template <class S>
PIPA_DEVICE void load_other(const PixelContrast& rows, char* other, int begin, int live) {
  load_rows<S::kRowBytes, S::kColumns, S::kThreads>(other, rows.keys, begin, live, rows.row_bytes);
}

// The tiles that this program's cluster meets in a launch.
template <class S>
PIPA_DEVICE ApartTiles<S::kCluster> apart_tiles(const PixelContrast& rows, int first_offset,
                                                int past_offset, int live) {
  const int block = block_x() / S::kCluster * S::kCluster;
  ApartTiles<S::kCluster> tiles = {S::kRows, S::kColumns, block, blocks_of(rows.n, S::kRows),
                                   {0, 0},   {},          live};
  if (block * S::kRows < live) tiles.offsets = offsets_of(block_y(), first_offset, past_offset);
  PIPA_UNROLL
  for (int member = 0; member < S::kCluster; ++member) {
    const int begin = (block + member) * S::kRows;
    if (begin < live) tiles.own[member] = own_range(rows, begin, begin + S::kRows, live);
  }
  return tiles;
}

// Adds a tile's e, which all count, to the rows' sums, and stores those of the warp's columns.
template <class S, int kByFma, int kBands>
PIPA_DEVICE void add_apart(const float (&s)[kBands][S::kColumns / 8][4],
                           float (&row_sums)[kBands][2],
                           float* partial,  // [warps, columns]
                           float scale,
                           int begin,   // the block's first row
                           int column,  // the tile's
                           int live) {
  float column_sums[S::kColumns / 8][2] = {};
  const bool ragged = column + S::kColumns > live || begin + S::kRows > live;
  PIPA_UNROLL
  for (int m = 0; m < kBands; ++m) PIPA_UNROLL
  for (int n = 0; n < S::kColumns / 8; ++n) PIPA_UNROLL
  for (int i = 0; i < 4; ++i) {
    float e = exp2_shared_out<kByFma>(s[m][n][i] * scale - scale, 4 * n + i);
    if (ragged) {
      const int row = begin + warp() * 16 * kBands + fragment_row(lane(), m, i / 2);
      e = row < live && column + fragment_column(lane(), n, i) < live ? e : 0.0f;
    }
    row_sums[m][i / 2] += e;
    column_sums[n][i % 2] += e;
  }
  store_column_sums(column_sums, partial + warp() * S::kColumns);
}
// Adds the sums that all warps have stored to those of the tile's columns.
template <class S>
PIPA_DEVICE void add_columns(const float* partial, float* to) {
  if (thread() >= S::kColumns) return;
  float sum = 0;
  PIPA_UNROLL
  for (int w = 0; w < S::kWarps; ++w) sum += partial[w * S::kColumns + thread()];
  to[thread()] += sum;
}

// Of rows that are their own keys, pairs of blocks that share no class, each once: block I meets
// I + shift, counted around, and what the tile adds to the other's rows goes to that shift's slot.
// Program (I, p) takes kRun offsets from first_offset + kRun p on, and its own rows' sums go to a
// slot of p's. Slots are told in schedule.h.
template <class S, Number kNumber>
PIPA_KERNEL(S::kThreads, S::blocks(kNumber))
sum_apart_kernel(PixelContrast rows,
                 float* slots,  // [Slots::count, padded], added to
                 int first_offset, int width, int past_offset) {
  constexpr int kEights = S::kColumns / 8;
  const int live = *rows.live, begin = block_x() * S::kRows;
  const auto tiles = apart_tiles<S>(rows, first_offset, past_offset, live);
  const int index = tiles.next(0);
  if (index >= tiles.end()) return;
  char* own = shared_memory();
  char* others = own + S::kOwnBytes;  // two tiles
  float* partial =
      reinterpret_cast<float*>(own + S::kOwnBytes + 2 * S::kOtherBytes);  // [warps, columns]
  const int row = warp() * 16 * S::kBands;
  float row_sums[S::kBands][2] = {};
  auto load = [&](int at, int turn) {
    load_other<S>(rows, others + turn * S::kOtherBytes, tiles.column(at), live);
  };
  auto next = [&](int at) { return tiles.next(at + 1); };
  auto work = [&](int at, int turn) {
    float s[S::kBands][kEights][4];
    similarities<kNumber, S::kRowBytes, S::kBands, S::kColumns>(s, own, row,
                                                                others + turn * S::kOtherBytes);
    const int column = tiles.column(at);
    add_apart<S, 0>(s, row_sums, partial, rows.scale, begin, column, live);
    sync_threads();
    const int64_t slot = slot_of_shift(tiles.shift(at, 0), first_offset);
    add_columns<S>(partial, slots + slot * rows.padded + column);
  };
  load_own<S>(rows, own, begin, live);
  for_tiles(index, tiles.end(), load, next, work);
  add_lanes_of_rows(row_sums);
  if (lane() % 4 == 0) {
    PIPA_UNROLL
    for (int m = 0; m < S::kBands; ++m) PIPA_UNROLL
    for (int h = 0; h < 2; ++h) {
      const int64_t slot = slot_of_program(block_y(), width);
      slots[slot * rows.padded + begin + row + fragment_row(lane(), m, h)] += row_sums[m][h];
    }
  }
}

// What is summed over a block's own columns, and where it goes.
enum class Wanted { denominator, positives };

// Rows' sums over the columns of their block's classes; program (I, p) takes every kParts-th tile,
// and leaves its place of `out` as it is where there is none.
// denominator: of e, added to out [p], where rows are their own keys. positives: of losses and
// slopes, out [2 p] and [2 p + 1], in the form `negatives`.
template <class S, Number kNumber, Wanted kWanted>
PIPA_KERNEL(S::kThreads, S::blocks(kNumber))
sum_mixed_kernel(PixelContrast rows,
                 const float* z,  // [padded] of rows, for positives
                 float* out) {    // [kParts or 2 kParts, padded]
  constexpr int kEights = S::kColumns / 8;
  const int live = *rows.live, keys = *rows.live_keys;
  const int begin = block_x() * S::kRows, part = block_y();
  if (begin >= live) return;
  char* own = shared_memory();
  char* other = own + S::kOwnBytes;
  const int row = warp() * 16 * S::kBands;
  const LaneRows<S::kBands> mine(rows.first, rows.past, begin + row, live);
  // For the denominator, all blocks that sum_apart_kernel leaves out; its blocks are kUnit rows.
  constexpr bool kDenominator = kWanted == Wanted::denominator;
  constexpr int kUnit = kDenominator ? S::kRows : S::kColumns;
  const int past = begin + S::kRows;
  const OwnTiles tiles = own_tiles(
      kDenominator ? own_range(rows, begin, past, live) : class_range(rows, begin, past, live),
      kDenominator && !rows.all_form ? shared_range(rows.first, rows.past, begin, past, live)
                                     : Range{0, 0},
      kUnit, S::kColumns, keys);
  if (tiles.first(part) >= tiles.end) return;
  float sums[S::kBands][2] = {}, slopes[S::kBands][2] = {};
  float log_z[S::kBands][2], own_z[S::kBands][2];
  if constexpr (!kDenominator) {
    PIPA_UNROLL
    for (int m = 0; m < S::kBands; ++m) PIPA_UNROLL
    for (int h = 0; h < 2; ++h) {
      own_z[m][h] = z[mine.row[m][h]];
      log_z[m][h] = log2_exact(own_z[m][h]);
    }
  }
  load_own<S>(rows, own, begin, live);
  commit_copies();
  for (int tile = tiles.first(part); tile < tiles.end; tile = tiles.next(tile)) {
    const int column = tiles.column(tile);
    load_other<S>(rows, other, column, keys);
    commit_copies();
    wait_copies<0>();
    sync_threads();
    float s[S::kBands][kEights][4];
    similarities<kNumber, S::kRowBytes, S::kBands, S::kColumns>(s, own, row, other);
    sync_threads();  // the next tile may overwrite this one
    PIPA_UNROLL
    for (int m = 0; m < S::kBands; ++m) PIPA_UNROLL
    for (int n = 0; n < kEights; ++n) PIPA_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int h = i / 2, at = column + fragment_column(lane(), n, i);
      const int own_key = key_of(rows, mine.row[m][h]);
      const bool same = mine.same(m, h, at);
      const float exponent = s[m][n][i] * rows.scale - rows.scale;
      if constexpr (kDenominator) {
        const bool wanted = in_denominator(rows.all_form, same, own_key, at, keys);
        sums[m][h] += wanted ? exp2_fast(exponent) : 0.0f;
      } else {
        // log2(1 + Z/e), of the share that the lesser of both has, so that small losses keep their
        // digits
        const bool wanted = is_positive(same, own_key, at);
        const float z = own_z[m][h], e = exp2_fast(exponent), inverse = reciprocal(z + e);
        const float past = z > e ? log_z[m][h] - exponent : 0.0f;
        const float loss = past + minus_log2_1m((z > e ? e : z) * inverse);
        sums[m][h] += wanted ? loss : 0.0f;
        slopes[m][h] += wanted ? inverse : 0.0f;
      }
    }
  }
  add_lanes_of_rows(sums);
  add_lanes_of_rows(slopes);
  if (lane() % 4 == 0) {
    PIPA_UNROLL
    for (int m = 0; m < S::kBands; ++m) PIPA_UNROLL
    for (int h = 0; h < 2; ++h) {
      const int at = mine.row[m][h];
      if constexpr (kDenominator) {
        out[part * rows.padded + at] += sums[m][h];
      } else {
        out[2 * part * rows.padded + at] = sums[m][h];
        out[(2 * part + 1) * rows.padded + at] = slopes[m][h];
      }
    }
  }
}

// The tiles of keys that this program meets: in the form `all`, no class is left out.
template <class S>
PIPA_DEVICE KeyTiles<S> other_tiles(const PixelContrast& rows, int live, int keys) {
  return {rows.first, rows.past, block_x() * S::kRows, rows.all_form ? 0 : live, keys,
          block_y(),  blocks_y()};
}

// The sums of a warp's rows, which all lanes of a row have, to [padded].
template <int kBands>
PIPA_DEVICE void store_sums(const float (&sums)[kBands][2], const LaneRows<kBands>& mine,
                            float* out) {
  if (lane() % 4 != 0) return;
  PIPA_UNROLL
  for (int m = 0; m < kBands; ++m) PIPA_UNROLL
  for (int h = 0; h < 2; ++h) out[mine.row[m][h]] = sums[m][h];
}

// Rows' sums of e over keys of others that count in their denominators; program (I, p) takes the
// p-th share of the keys.
template <class S, Number kNumber>
PIPA_KERNEL(S::kThreads, S::blocks(kNumber))
sum_others_kernel(PixelContrast rows,
                  float* out) {  // [shares, padded]
  const int live = *rows.live, keys = *rows.live_keys, begin = block_x() * S::kRows;
  const KeyTiles<S> tiles = other_tiles<S>(rows, live, keys);
  const int high = tiles.share.high;
  const int column = tiles.next(tiles.share.low);
  if (begin >= live || column >= high) return;
  char* own = shared_memory();
  char* others = own + S::kOwnBytes;  // two tiles
  const int row = warp() * 16 * S::kBands;
  const LaneRows<S::kBands> mine(rows.first, rows.past, begin + row, rows.all_form ? 0 : live);
  float sums[S::kBands][2] = {};
  auto load = [&](int at, int turn) {
    load_other<S>(rows, others + turn * S::kOtherBytes, at, keys);
  };
  auto next = [&](int at) { return tiles.next(at + S::kColumns); };
  auto work = [&](int at, int turn) {
    float e[S::kBands][S::kColumns / 8][4];
    similarities<kNumber, S::kRowBytes, S::kBands, S::kColumns>(e, own, row,
                                                                others + turn * S::kOtherBytes);
    sync_threads();  // the tile after the next may overwrite this one
    add_exponentials<0>(e, sums, rows.scale, 0, mine, tiles, at);
  };
  load_own<S>(rows, own, begin, live);
  for_tiles(column, high, load, next, work);
  add_lanes_of_rows(sums);
  store_sums(sums, mine, out + block_y() * rows.padded);
}

// What the gradient of a row, or a key, depends on, [padded] each, 0 where it takes no part.
struct Slopes {
  const float* z;
  const float* u;
  const float* pair;  // an anchor's weight for each of its positives
};

// Makes entries of G of similarities. With kMarked, some columns share a class with some rows.
// Columns past all keys are rows of zeros, and nothing is masked for them. Their entries may be
// beyond float16 where a row's Z is small: to be packed with Beyond::largest, as inf · 0 is NaN.
// Nothing else is beyond it (reference/_float16.py).
template <bool kMarked, int kByFma, int kBands, int kEights>
PIPA_DEVICE void entries(float (&s)[kBands][kEights][4], const PixelContrast& rows,
                         const Slopes& slopes, const Slopes& of_keys, int begin, int column,
                         int live, const float (&own_u)[kBands][2],
                         const float* other_u) {  // [8 kEights]
  const LaneRows<kBands> mine(rows.first, rows.past, begin, kMarked ? live : 0);
  PIPA_UNROLL
  for (int m = 0; m < kBands; ++m) PIPA_UNROLL
  for (int h = 0; h < 2; ++h) {
    const int i = mine.row[m][h];
    const float z = kMarked ? slopes.z[i] : 0.0f, pair = kMarked ? slopes.pair[i] : 0.0f;
    PIPA_UNROLL
    for (int n = 0; n < kEights; ++n) PIPA_UNROLL
    for (int k = 0; k < 2; ++k) {
      if (kMarked) keep_loads_apart();
      const int at = fragment_column(lane(), n, k), j = column + at;
      float& entry = s[m][n][2 * h + k];
      const float e = exp2_shared_out<kByFma>(entry * rows.scale - rows.scale, 4 * n + 2 * h + k);
      entry = e * (own_u[m][h] + other_u[at]);
      if (kMarked && mine.same(m, h, j)) {
        const float other_pair = of_keys.pair[j], other_z = of_keys.z[j];
        if (rows.all_form)
          entry -= pair + other_pair;
        else
          entry = -pair * z * reciprocal(z + e) - other_pair * other_z * reciprocal(other_z + e);
        if (rows.itself && j == i) entry = 0;
      }
    }
  }
}

// Where the gradient goes.
struct Target {
  const int64_t* order;  // [n] the row that each sorted one was
  const float* factor;   // []
  bool wide;             // float32, or numbers as the rows'
  char* out;             // [n, columns]
};

// Columns `part` ... of a warp's rows of factor G X, to where the rows came from.
template <Number kNumber, int kBands, int kEights>
PIPA_DEVICE void store_gradient(const float (&sum)[kBands][kEights][4], const PixelContrast& rows,
                                int begin,  // the warp's first row
                                int part, int live, const Target& target) {
  const int columns = rows.row_bytes / kBytes<kNumber>;
  PIPA_UNROLL
  for (int m = 0; m < kBands; ++m) PIPA_UNROLL
  for (int h = 0; h < 2; ++h) {
    const int64_t at = begin + fragment_row(lane(), m, h);
    if (at >= rows.n) continue;
    const bool counts = at < live;  // others may be NaN
    const int64_t to = target.order[at] * columns;
    PIPA_UNROLL
    for (int n = 0; n < kEights; ++n) {
      const int d = part + fragment_column(lane(), n, 0);
      if (d >= columns) continue;
      const float a = counts ? sum[m][n][2 * h] * *target.factor : 0.0f;
      const float b = counts ? sum[m][n][2 * h + 1] * *target.factor : 0.0f;
      if (kHalf<kNumber> && !target.wide) {
        reinterpret_cast<uint32_t*>(target.out)[(to + d) / 2] = pack<kNumber>(a, b);
      } else {
        reinterpret_cast<float*>(target.out)[to + d] = a;
        reinterpret_cast<float*>(target.out)[to + d + 1] = b;
      }
    }
  }
}

// dX = factor G K, K the keys, written where the rows came from. Program (I, p) makes columns
// kPart p … of block I's rows, whose similarities it computes anew.
template <class S, Number kNumber>
PIPA_KERNEL(S::kThreads, S::blocks(kNumber))
gradient_kernel(PixelContrast rows, Slopes slopes, Slopes of_keys, Target target) {
  constexpr int kEights = S::kColumns / 8;
  const int live = *rows.live, keys = *rows.live_keys;
  const int begin = block_x() * S::kRows, part = block_y() * S::kPart;
  char* own = shared_memory();
  char* others = own + S::kOwnBytes;  // two tiles
  float* other_u =
      reinterpret_cast<float*>(own + S::kOwnBytes + 2 * S::kOtherBytes);  // [2, columns]
  const int row = warp() * 16 * S::kBands;
  float sum[S::kBands][S::kPart / 8][4] = {};

  if (begin < live && keys > 0) {
    const Range range = class_range(rows, begin, begin + S::kRows, live);
    float own_u[S::kBands][2];
    PIPA_UNROLL
    for (int m = 0; m < S::kBands; ++m) PIPA_UNROLL
    for (int h = 0; h < 2; ++h) own_u[m][h] = slopes.u[begin + row + fragment_row(lane(), m, h)];
    auto load = [&](int column, int turn) {
      load_other<S>(rows, others + turn * S::kOtherBytes, column, keys);
      if (thread() < S::kColumns / 4)
        copy_async(other_u + turn * S::kColumns + 4 * thread(), of_keys.u + column + 4 * thread(),
                   true);
    };
    auto next = [](int column) { return column + S::kColumns; };
    auto work = [&](int column, int turn) {
      float s[S::kBands][kEights][4];
      const char* other = others + turn * S::kOtherBytes;
      const float* u = other_u + turn * S::kColumns;
      similarities<kNumber, S::kRowBytes, S::kBands, S::kColumns>(s, own, row, other);
      if (range.meets(column, column + S::kColumns))
        entries<true, 0>(s, rows, slopes, of_keys, begin + row, column, live, own_u, u);
      else
        entries<false, 0>(s, rows, slopes, of_keys, begin + row, column, live, own_u, u);
      add_product<kNumber, S::kRowBytes, S::kBands, S::kColumns, S::kPart, Beyond::largest>(
          sum, s, other, part);
      sync_threads();  // the tile after the next may overwrite this one
    };
    load_own<S>(rows, own, begin, live);
    for_tiles(0, keys, load, next, work);
  }

  store_gradient<kNumber>(sum, rows, begin + row, part, live, target);
}

}  // namespace pipa::cuda
