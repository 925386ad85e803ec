// SPDX-License-Identifier: Apache-2.0
// Tiles of rows in shared memory, and products of them by tensor cores.
//
// A warp owns 16 kBands rows of one tile and meets all rows of another. Its results lie in
// fragments [kBands][columns / 8][4]: lane l has rows l / 4 and l / 4 + 8 of each band (places 0, 1
// and 2, 3) and columns 2 (l % 4) and one more of each eight.
#pragma once

#include "cuda/device.h"
#include "cuda/limits.h"
#include "cuda/schedule.h"

namespace pipa::cuda {

template <Number kNumber>
constexpr bool kHalf = kNumber == Number::bfloat16 || kNumber == Number::float16;
template <Number kNumber>
constexpr int kBytes = kHalf<kNumber> ? 2 : 4;

// Registers of one operand of a product, and what TF32 left of them.
template <Number kNumber, int kCount>
struct Operand {
  uint32_t bits[kCount];
  uint32_t rest[kNumber == Number::tf32x3 ? kCount : 1];

  PIPA_DEVICE void set(int i, uint32_t value) {
    if constexpr (kHalf<kNumber>) {
      bits[i] = value;
    } else {
      bits[i] = round_tf32(float_of(value));
      if constexpr (kNumber == Number::tf32x3)
        rest[i] = round_tf32(float_of(value) - float_of(bits[i]));
    }
  }
};

template <Number kNumber, int kCount>
PIPA_DEVICE void multiply(float (&c)[4], const Operand<kNumber, 4>& a,
                          const Operand<kNumber, kCount>& b, int first) {
  const int second = first + 1;
  if constexpr (kNumber == Number::bfloat16) {
    multiply_bf16(c, a.bits, b.bits[first], b.bits[second]);
  } else if constexpr (kNumber == Number::float16) {
    multiply_f16(c, a.bits, b.bits[first], b.bits[second]);
  } else {
    if constexpr (kNumber == Number::tf32x3) {
      multiply_tf32(c, a.rest, b.bits[first], b.bits[second]);
      multiply_tf32(c, a.bits, b.rest[first], b.rest[second]);
    }
    multiply_tf32(c, a.bits, b.bits[first], b.bits[second]);
  }
}

// What becomes of numbers that float16 does not reach.
enum class Beyond { infinite, largest };

template <Number kNumber, Beyond kBeyond = Beyond::infinite>
PIPA_DEVICE uint32_t pack(float low, float high) {
  if (kNumber == Number::bfloat16) return pack_bf16(low, high);
  return kBeyond == Beyond::largest ? pack_f16_bounded(low, high) : pack_f16(low, high);
}

// 2^x for -126 <= x < 127.5, by multiply-adds: relative error 2e-7. NaN stays NaN, which it would
// not if the integer were added to the exponent of 2^f.
PIPA_DEVICE float exp2_by_fma(float x) {
  constexpr float kShift = 12582912 + 127;
  const float shifted = x + kShift;  // rounds to an integer, 127 more than which is in the low bits
  const float f = x - (shifted - kShift);
  float p = 1.3264727e-3f;  // minimax for 2^f - 1 over f in [-1/2, 1/2]
  p = p * f + 9.6715128e-3f;
  p = p * f + 5.5507337e-2f;
  p = p * f + 2.4022242e-1f;
  p = p * f + 6.9314698e-1f;
  p = p * f + 1.0f;
  return p * float_of(bits_of(shifted) << 23);
}
// -log2(1 - v) for 0 <= v <= 1/2, by multiply-adds: relative error 2e-7, so that it is right where
// 1 - v is 1 when rounded.
PIPA_DEVICE float minus_log2_1m(float v) {
  float p = 2.0790794f;  // minimax for the quotient by v
  p = p * v - 2.4465396f;
  p = p * v + 1.8144341f;
  p = p * v - 0.2936447f;
  p = p * v + 0.388969f;
  p = p * v + 0.35029367f;
  p = p * v + 0.48142824f;
  p = p * v + 0.7213372f;
  p = p * v + 1.442695f;
  return p * v;
}
// The index-th exponential of a tile: kByFma of eight by multiply-adds, the others by the unit for
// them, which has a sixteenth of the rate.
template <int kByFma>
PIPA_DEVICE float exp2_shared_out(float x, int index) {
  return index % 8 < kByFma ? exp2_by_fma(x) : exp2_fast(x);
}

// Starts to copy `rows` first … first + kRows [n, row_bytes]; what is past `live`, or past a
// row's end, becomes 0. row_bytes is a multiple of 16.
template <int kRowBytes, int kRows, int kThreads>
PIPA_DEVICE void load_rows(char* tile, const void* rows, int64_t first, int64_t live,
                           int row_bytes) {
  constexpr int kPieces = kRowBytes / 16;
  static_assert(kRows * kPieces % kThreads == 0 && kRowBytes % 128 == 0);
  const char* x = static_cast<const char*>(rows);
#pragma unroll 8
  for (int i = 0; i < kRows * kPieces / kThreads; ++i) {
    const int index = i * kThreads + thread();
    const int row = index / kPieces, piece = index % kPieces;
    const bool valid = first + row < live && piece * 16 < row_bytes;
    const int64_t offset = (first + row) * row_bytes + piece * 16;
    copy_async(tile + row * kRowBytes + swapped(row, piece), valid ? x + offset : x, valid);
  }
}

// work(at, turn) for all tiles at, next(at), … below `high`, of which there is one: while the next
// one is copied to the other of two buffers. load(at, turn) starts that; what was started before
// comes with the first.
template <class Load, class Next, class Work>
PIPA_DEVICE void for_tiles(int at, int high, const Load& load, const Next& next, const Work& work) {
  load(at, 0);
  commit_copies();
  for (int turn = 0; at < high; turn ^= 1) {
    const int following = next(at);
    if (following < high) {
      load(following, turn ^ 1);
      commit_copies();
      wait_copies<1>();
    } else {
      wait_copies<0>();
    }
    sync_threads();
    work(at, turn);
    at = following;
  }
}

// s = own [16 kBands rows from own_row on] · other [kColumns rows] transposed.
template <Number kNumber, int kRowBytes, int kBands, int kColumns>
PIPA_DEVICE void similarities(float (&s)[kBands][kColumns / 8][4], const char* own, int own_row,
                              const char* other) {
  PIPA_UNROLL
  for (int m = 0; m < kBands; ++m) PIPA_UNROLL
  for (int n = 0; n < kColumns / 8; ++n) PIPA_UNROLL
  for (int i = 0; i < 4; ++i) s[m][n][i] = 0;
  const int l = lane(), other_row = l / 16 * 8 + l % 8;
  const Pieces own_pieces(l, l / 16), other_pieces(l, l / 8 % 2);
  own += (own_row + l % 16) * kRowBytes;
  other += other_row * kRowBytes;
#pragma unroll 4
  for (int k = 0; k < kRowBytes / 32; ++k) {
    Operand<kNumber, 4> a[kBands];
    PIPA_UNROLL
    for (int m = 0; m < kBands; ++m) {
      uint32_t loaded[4];
      load_matrices(loaded, own + 16 * m * kRowBytes + own_pieces.at(k));
      PIPA_UNROLL
      for (int i = 0; i < 4; ++i) a[m].set(i, loaded[i]);
    }
    PIPA_UNROLL
    for (int n = 0; n < kColumns / 16; ++n) {
      uint32_t loaded[4];
      load_matrices(loaded, other + 16 * n * kRowBytes + other_pieces.at(k));
      Operand<kNumber, 4> b;
      PIPA_UNROLL
      for (int i = 0; i < 4; ++i) b.set(i, loaded[i]);
      PIPA_UNROLL
      for (int m = 0; m < kBands; ++m) {
        multiply(s[m][2 * n], a[m], b, 0);
        multiply(s[m][2 * n + 1], a[m], b, 2);
      }
    }
  }
}

// sum += g [kColumns of other rows] · other [those rows, kPart columns from `column` on, which is a
// multiple of 128 bytes].
template <Number kNumber, int kRowBytes, int kBands, int kColumns, int kPart,
          Beyond kBeyond = Beyond::infinite>
PIPA_DEVICE void add_product(float (&sum)[kBands][kPart / 8][4],
                             const float (&g)[kBands][kColumns / 8][4], const char* other,
                             int column) {
  const int l = lane();
  other += column * kBytes<kNumber>;
  if constexpr (kHalf<kNumber>) {
    const Pieces pieces(l, l / 16);
    other += l % 16 * kRowBytes;
    PIPA_UNROLL
    for (int k = 0; k < kColumns / 16; ++k) {
      // results of a product lie as the next one's left operand wants them
      Operand<kNumber, 4> a[kBands];
      PIPA_UNROLL
      for (int m = 0; m < kBands; ++m) PIPA_UNROLL
      for (int i = 0; i < 4; ++i) {
        const float* pair = &g[m][2 * k + i / 2][2 * (i % 2)];
        a[m].set(i, pack<kNumber, kBeyond>(pair[0], pair[1]));
      }
      PIPA_UNROLL
      for (int n = 0; n < kPart / 16; ++n) {
        Operand<kNumber, 4> b;
        load_transposed(b.bits, other + 16 * k * kRowBytes + pieces.at(n));
        PIPA_UNROLL
        for (int m = 0; m < kBands; ++m) {
          multiply(sum[m][2 * n], a[m], b, 0);
          multiply(sum[m][2 * n + 1], a[m], b, 2);
        }
      }
    }
  } else {
    const int row = 2 * (l % 4), within = l / 4 % 4 * 4;
    const Pieces pieces[2] = {{row, l / 16}, {row + 1, l / 16}};
    other += row * kRowBytes + within;
    PIPA_UNROLL
    for (int k = 0; k < kColumns / 8; ++k) {
      // Which rows of `other` are called 0 … 7 is free: those that lane l has columns of come as
      // its l % 4 and l % 4 + 4, so that no value changes its lane.
      Operand<kNumber, 4> a[kBands];
      PIPA_UNROLL
      for (int m = 0; m < kBands; ++m) PIPA_UNROLL
      for (int i = 0; i < 4; ++i) a[m].set(i, bits_of(g[m][k][2 * (i % 2) + i / 2]));
      PIPA_UNROLL
      for (int n = 0; n < kPart / 8; ++n) {
        Operand<kNumber, 2> b;
        PIPA_UNROLL
        for (int i = 0; i < 2; ++i)
          b.set(i, *reinterpret_cast<const uint32_t*>(other + (8 * k + i) * kRowBytes +
                                                      pieces[i].at(n)));
        PIPA_UNROLL
        for (int m = 0; m < kBands; ++m) multiply(sum[m][n], a[m], b, 0);
      }
    }
  }
}

// Each row's sum over a fragment's columns, in all four lanes that share the row.
template <int kBands>
PIPA_DEVICE void add_lanes_of_rows(float (&sums)[kBands][2]) {
  PIPA_UNROLL
  for (int m = 0; m < kBands; ++m) PIPA_UNROLL
  for (int h = 0; h < 2; ++h) {
    sums[m][h] += shuffle_xor(sums[m][h], 1);
    sums[m][h] += shuffle_xor(sums[m][h], 2);
  }
}

// The column sums [columns] of a warp's rows of a fragment: at each step a lane keeps half of its
// columns and gets what another has of them.
template <int kEights>
PIPA_DEVICE void store_column_sums(float (&sums)[kEights][2], float* to) {
  static_assert((kEights & (kEights - 1)) == 0);
  const int l = lane();
  int eight = 0, twins = 0;  // first eight columns that are left, and lanes that have the same
  PIPA_UNROLL
  for (int step = 0; step < 3; ++step) {
    const int bit = 16 >> step, half = kEights >> (step + 1);
    const bool upper = l & bit;
    if (half > 0) {
      PIPA_UNROLL
      for (int n = 0; n < kEights / 2; ++n) PIPA_UNROLL
      for (int i = 0; i < 2; ++i)
        if (n < half) {
          const float mine = upper ? sums[n + half][i] : sums[n][i];
          sums[n][i] = mine + shuffle_xor(upper ? sums[n][i] : sums[n + half][i], bit);
        }
      eight += upper ? half : 0;
    } else {
      PIPA_UNROLL
      for (int i = 0; i < 2; ++i) sums[0][i] += shuffle_xor(sums[0][i], bit);
      twins |= bit;
    }
  }
  if ((l & twins) == 0) {
    PIPA_UNROLL
    for (int n = 0; n < (kEights > 8 ? kEights / 8 : 1); ++n) PIPA_UNROLL
    for (int i = 0; i < 2; ++i) to[8 * (eight + n) + 2 * (l % 4) + i] = sums[n][i];
  }
}

}  // namespace pipa::cuda
