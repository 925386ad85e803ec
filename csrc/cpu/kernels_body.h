// SPDX-License-Identifier: Apache-2.0
// The kernels of one instruction set, in the compiler's vector extensions. Included once each by
// kernels_*.cpp, which define PIPA_ISA (a namespace), PIPA_TARGET, PIPA_LANES and PIPA_TILE_ROWS,
// and PIPA_DOT where cosines are products of pairs of bfloat16: PIPA_DOT(c, a, b) adds to each
// float of c the two products of a pair. Everything after the cosines is computed in floats either
// way.
//
// Every function carries the target itself and has internal linkage: no flag of a file, and hence
// no wide instruction in something that the linker might share with code for older CPUs.
// e = exp((cosine - 1) / temperature) is computed as 2^t in the tile, while it is in registers.
#include <cstdint>
#include <cstring>

#include "cpu/kernels.h"

#define PIPA_INLINE static inline __attribute__((always_inline)) PIPA_TARGET

namespace pipa {
namespace PIPA_ISA {

// Without these, a vector of 8 floats in a signature warns where the baseline has no AVX. All such
// functions are inlined, so no calling convention is involved.
#pragma GCC diagnostic ignored "-Wpsabi"

constexpr int V = PIPA_LANES, R = PIPA_TILE_ROWS, W = 2 * V;  // a tile is R rows by W columns

// Terms that one running sum of floats takes, of as many as a block has.
constexpr int span_of(int count) { return count % 48 == 0 ? 48 : 32; }
static_assert(kBlock % R == 0 && kBlock % W == 0 && kBankBlock % W == 0, "blocks hold whole tiles");
static_assert(kBlock % span_of(kBlock) == 0 && kBankBlock % span_of(kBankBlock) == 0,
              "blocks hold whole spans");

typedef float vf __attribute__((vector_size(4 * PIPA_LANES)));
typedef int32_t vi __attribute__((vector_size(4 * PIPA_LANES)));
typedef float vf_unaligned __attribute__((vector_size(4 * PIPA_LANES), aligned(4), may_alias));
typedef int32_t vi_unaligned __attribute__((vector_size(4 * PIPA_LANES), aligned(4), may_alias));

struct Tile {
  vf at[R][2];
};

PIPA_INLINE vf load(const float* from) { return *reinterpret_cast<const vf_unaligned*>(from); }
PIPA_INLINE vi load(const int32_t* from) { return *reinterpret_cast<const vi_unaligned*>(from); }
PIPA_INLINE void store(float* to, vf value) { *reinterpret_cast<vf_unaligned*>(to) = value; }
PIPA_INLINE void store(int32_t* to, vi value) { *reinterpret_cast<vi_unaligned*>(to) = value; }
// Of what lies offset floats on, which may be past the end: a prefetch reads nothing that is not
// there, but such a pointer must not be made by arithmetic.
PIPA_INLINE void prefetch(const void* base, int64_t offset, int floats) {
  const uintptr_t from = reinterpret_cast<uintptr_t>(base) + offset * sizeof(float);
  for (int i = 0; i < floats; i += kCacheLine)
    __builtin_prefetch(reinterpret_cast<const void*>(from + i * sizeof(float)));
}
PIPA_INLINE vf splat(float value) { return value - vf{}; }
PIPA_INLINE vi splat(int32_t value) { return value - vi{}; }
PIPA_INLINE vf only(vf value, vi mask) { return (vf)((vi)value & mask); }
PIPA_INLINE vf choose(vi mask, vf yes, vf no) { return (vf)(((vi)yes & mask) | ((vi)no & ~mask)); }
PIPA_INLINE vi iota() {
  vi lane;
  for (int i = 0; i < V; ++i) lane[i] = i;
  return lane;
}

PIPA_INLINE double add_lanes(vf value) {
  double sum = 0;
  for (int i = 0; i < V; ++i) sum += value[i];
  return sum;
}

// 2^t within 2 ulp for -126 <= t <= 127, its ends beyond; NaN stays NaN.
PIPA_INLINE vf exp2(vf t) {
  const vf low = splat(-126.0f), high = splat(127.0f);
  t = t < low ? low : t;
  t = t > high ? high : t;
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits of the mantissa.
  const vf shifted = t + 12582912.0f;
  const vf f = t - (shifted - 12582912.0f);  // in [-1/2, 1/2], exactly
  // Minimax for 2^f - 1 over f, relative error 9e-8.
  vf p = splat(1.3264727e-3f);
  p = p * f + 9.6715128e-3f;
  p = p * f + 5.5507337e-2f;
  p = p * f + 2.4022242e-1f;
  p = p * f + 6.9314698e-1f;
  p = p * f + 1.0f;
  return (vf)((vi)p + ((vi)shifted << 23));
}

// log(1 + a) = 2 atanh(y) for y = a / (2 + a), 0 <= a <= 1: no cancellation for small a.
PIPA_INLINE vf twice_atanh(vf y) {
  const vf square = y * y;
  // Minimax for atanh(y) / y - 1 over y^2 in [0, 1/9], relative error 5e-9.
  vf p = splat(1.4005996e-1f);
  p = p * square + 1.4000902e-1f;
  p = p * square + 2.0010764e-1f;
  p = p * square + 3.3333208e-1f;
  p = p * square + 1.0f;
  return 2.0f * y * p;
}

#ifdef PIPA_DOT
typedef vi operands;
typedef int32_t operand __attribute__((may_alias));
constexpr int kPerOperand = 2;

PIPA_INLINE vf multiply_add(vf c, vi b, int32_t a) { return PIPA_DOT(c, b, splat(a)); }
PIPA_INLINE const operand* broadcast_rows(const Block& block) { return block.pairs; }

// Pairs of bfloat16, low half first, from floats that are bfloat16.
PIPA_INLINE vi pair(vf low, vf high) {
  return (((vi)low >> 16) & 0xffff) | ((vi)high & splat(static_cast<int32_t>(0xffff0000)));
}
#else
typedef vf operands;
typedef float operand __attribute__((may_alias));
constexpr int kPerOperand = 1;

PIPA_INLINE vf multiply_add(vf c, vf b, float a) { return c + b * a; }
PIPA_INLINE const operand* broadcast_rows(const Block& block) { return block.rows; }
#endif

// Cosines of R rows with W columns.
PIPA_INLINE Tile product(const operand* a,  // [count / V, a_size, V] from the tile's first row on
                         int64_t a_stride,  // operands from one chunk of V to the next
                         const operand* b,  // [count, W]
                         int count) {
  Tile c = {};
  for (int d = 0; d < count; d += V, a += a_stride) {
    prefetch(a, R * V, R * V);  // the next tile's, too short a run for the hardware to foresee
#pragma GCC unroll 4
    for (int k = 0; k < V; ++k, b += W) {
      const operands b0 = load(b), b1 = load(b + V);
#pragma GCC unroll 16
      for (int i = 0; i < R; ++i) {
        c.at[i][0] = multiply_add(c.at[i][0], b0, a[i * V + k]);
        c.at[i][1] = multiply_add(c.at[i][1], b1, a[i * V + k]);
      }
    }
  }
  return c;
}

// Cosines of a block's rows i .. i + R - 1 with another's j .. j + W - 1.
PIPA_INLINE Tile cosines(const Block& a, const Block& b, int i, int j, int depth) {
  const int count = depth / kPerOperand;
  const operand* panel = static_cast<const operand*>(b.panels) + j * count;
  constexpr int kTiles = kBlock / R;  // that read the panel; each asks for a share of the next one
  const int share = W * count / kTiles;
  prefetch(panel, W * count + i / R * share, share);
  return product(broadcast_rows(a) + i * V, chunk_stride(kBlock, V), panel, count);
}

// Adds g x over a span of terms to R rows and N vectors of columns, g [R, SPAN] at any strides.
template <int N, int SPAN, int G_ROW, int G_COLUMN>
PIPA_INLINE void update_tile(const float* g, const float* x,  // [N][SPAN, V], x_stride apart
                             int64_t x_stride,
                             float* out,  // [N][R, V], out_stride apart
                             int64_t out_stride) {
  for (int n = 0; n < N; ++n) prefetch(out, n * out_stride, R * V);
  vf c[R][N] = {};
#pragma GCC unroll 2
  for (int k = 0; k < SPAN; ++k, x += V, g += G_COLUMN) {
    vf b[N];
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) b[n] = load(x + n * x_stride);
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n) c[i][n] += b[n] * g[i * G_ROW];
  }
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) {
      float* to = out + n * out_stride + i * V;
      store(to, load(to) + c[i][n]);
    }
}

// A span of update for N vectors of columns. Each tile asks for its share of the next N of x.
template <int N, int SPAN, int G_ROW, int G_COLUMN>
PIPA_INLINE void update_columns(const float* g, const float* x, int64_t x_stride, float* out) {
  constexpr int kShare = SPAN * V / (kBlock / R);
  const int64_t out_stride = chunk_stride(kBlock, V);
  for (int i = 0; i < kBlock; i += R) {
    for (int n = N; n < 2 * N; ++n) prefetch(x, n * x_stride + i / R * kShare, kShare);
    update_tile<N, SPAN, G_ROW, G_COLUMN>(g + i * G_ROW, x, x_stride, out + i * V, out_stride);
  }
}

// out += g x for out as Block::rows, g [kBlock, COUNT] at any strides, x as Block::rows of COUNT.
// By spans of terms, each summed before it is added: a sum of sums of equally many terms errs far
// less than one running sum, and a span of g stays in L1 while the columns pass.
template <int COUNT, int G_ROW, int G_COLUMN>
PIPA_INLINE void update(const float* g, const float* x, int depth, float* out) {
  constexpr int kSpan = span_of(COUNT);
  const int64_t x_stride = chunk_stride(COUNT, V), out_stride = chunk_stride(kBlock, V);
  for (int from = 0; from < COUNT; from += kSpan, g += kSpan * G_COLUMN, x += kSpan * V) {
    int chunk = 0;
    for (; (chunk + 2) * V <= depth; chunk += 2)
      update_columns<2, kSpan, G_ROW, G_COLUMN>(g, x + chunk * x_stride, x_stride,
                                                out + chunk * out_stride);
    if (chunk * V < depth)
      update_columns<1, kSpan, G_ROW, G_COLUMN>(g, x + chunk * x_stride, x_stride,
                                                out + chunk * out_stride);
  }
}

enum class Kind { apart, together, mixed };

// Whether all pairs of a tile have keys that differ, or that agree. Keys are ascending.
PIPA_INLINE Kind kind_of(const int32_t* a, const int32_t* b) {
  const int32_t a0 = a[0], a1 = a[R - 1], b0 = b[0], b1 = b[W - 1];
  if (a0 == b1 && a1 == b0) return Kind::together;
  return (a1 < b0 || b1 < a0) && b1 != kNoRow ? Kind::apart : Kind::mixed;
}

// Columns whose key differs from the row's, padding left out.
PIPA_INLINE vi differs(int32_t key, vi keys) { return (keys != key) & (keys != kNoRow); }

template <bool MIXED>
PIPA_INLINE void sum_tile(Tile c, float scale, const int32_t* keys_a, const int32_t* keys_b,
                          vf* row_sums, vf* column_sums) {
  const vi k0 = load(keys_b), k1 = load(keys_b + V);
  vf s0 = {}, s1 = {};  // of the tile: then added, so that no long sum runs in float
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
    vf e0 = exp2(c.at[i][0] * scale - scale), e1 = exp2(c.at[i][1] * scale - scale);
    if (MIXED) {
      e0 = only(e0, differs(keys_a[i], k0));
      e1 = only(e1, differs(keys_a[i], k1));
    }
    s0 += e0;
    s1 += e1;
    row_sums[i] += e0 + e1;
  }
  column_sums[0] += s0;
  column_sums[1] += s1;
}

PIPA_TARGET static void sum(const Scores& scores, const Block& a, const Block& b, double* sums_a,
                            double* sums_b) {
  vf row_sums[kBlock] = {}, column_sums[kBlock / V] = {};
  for (int j = 0; j < kBlock; j += W)
    for (int i = 0; i < kBlock; i += R) {
      const Kind kind = kind_of(a.keys + i, b.keys + j);
      if (kind == Kind::together) continue;
      const Tile c = cosines(a, b, i, j, scores.depth);
      if (kind == Kind::apart)
        sum_tile<false>(c, scores.scale, a.keys + i, b.keys + j, row_sums + i, column_sums + j / V);
      else
        sum_tile<true>(c, scores.scale, a.keys + i, b.keys + j, row_sums + i, column_sums + j / V);
    }
  for (int i = 0; i < kBlock; ++i) sums_a[i] += add_lanes(row_sums[i]);
  if (sums_b)
    for (int j = 0; j < kBlock; ++j) sums_b[j] += column_sums[j / V][j % V];
}

// softplus(log z - s) and its derivative by log z, from d = log2 z - log2 e of a pair.
PIPA_INLINE void softplus(vf d, vf* loss, vf* derivative) {
  const vi negative = d < 0.0f;
  const vf a = exp2(choose(negative, d, -d));  // min(z, e) / max(z, e)
  const vf r = 1.0f / ((1.0f + a) * (2.0f + a));
  *derivative = (2.0f + a) * r * choose(negative, a, splat(1.0f));
  *loss = twice_atanh(a * (1.0f + a) * r) + only(d, ~negative) * 0.69314718f;
}

struct PositiveSums {
  vf row_loss[kBlock], row_derivative[kBlock];
  vf column_loss[kBlock / V], column_derivative[kBlock / V];
};

// Rolled, from memory: it needs more registers than the accumulators leave.
PIPA_INLINE void positive_tile(const float* t,  // [R, W] scores
                               const Block& a, const Block& b, const float* log_z_a,
                               const float* log_z_b, int i0, int j0, bool both,
                               PositiveSums* sums) {
  const bool diagonal = a.rows == b.rows;
#pragma GCC unroll 1
  for (int i = i0; i < i0 + R; ++i)
#pragma GCC unroll 1
    for (int j = j0; j < j0 + W; j += V) {
      const vf score = load(t + (i - i0) * W + j - j0);
      vi positive = load(b.keys + j) == a.keys[i];
      if (diagonal) positive &= iota() != i - j;
      vf loss, derivative;
      softplus(log_z_a[i] - score, &loss, &derivative);
      sums->row_loss[i] += only(loss, positive);
      sums->row_derivative[i] += only(derivative, positive);
      if (!both) continue;
      softplus(load(log_z_b + j) - score, &loss, &derivative);
      sums->column_loss[j / V] += only(loss, positive);
      sums->column_derivative[j / V] += only(derivative, positive);
    }
}

PIPA_INLINE void store_scores(Tile c, float scale, float* to, int stride) {
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
    store(to + i * stride, c.at[i][0] * scale - scale);
    store(to + i * stride + V, c.at[i][1] * scale - scale);
  }
}

PIPA_TARGET static void positives(const Scores& scores, const Block& a, const Block& b,
                                  const float* log_z_a, const float* log_z_b, double* loss_a,
                                  double* loss_b) {
  PositiveSums sums = {};
  float t[R * W];
  for (int j = 0; j < kBlock; j += W)
    for (int i = 0; i < kBlock; i += R) {
      if (kind_of(a.keys + i, b.keys + j) == Kind::apart) continue;
      const Tile c = cosines(a, b, i, j, scores.depth);
      store_scores(c, scores.scale, t, W);
      positive_tile(t, a, b, log_z_a, log_z_b, i, j, loss_b != nullptr, &sums);
    }
  for (int i = 0; i < kBlock; ++i) {
    loss_a[2 * i] += add_lanes(sums.row_loss[i]);
    loss_a[2 * i + 1] += add_lanes(sums.row_derivative[i]);
  }
  if (loss_b)
    for (int j = 0; j < kBlock; ++j) {
      loss_b[2 * j] += sums.column_loss[j / V][j % V];
      loss_b[2 * j + 1] += sums.column_derivative[j / V][j % V];
    }
}

// G of pairs whose keys differ: e (u_i + u_j).
PIPA_INLINE void gradient_tile(Tile c, float scale, const float* u_a, const float* u_b,
                               float* g) {  // [R, kBlock]
  const vf u0 = load(u_b), u1 = load(u_b + V);
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
    store(g + i * kBlock, exp2(c.at[i][0] * scale - scale) * (u0 + u_a[i]));
    store(g + i * kBlock + V, exp2(c.at[i][1] * scale - scale) * (u1 + u_a[i]));
  }
}

// As gradient_tile, and -(w_i z_i / (z_i + e) + w_j z_j / (z_j + e)) where keys agree.
PIPA_INLINE void mixed_gradient_tile(float* g,  // [R, kBlock] scores, overwritten
                                     const Block& a, const Block& b, const RowValues& values_a,
                                     const RowValues& values_b, int i0, int j0) {
  const bool diagonal = a.rows == b.rows;
#pragma GCC unroll 1
  for (int i = i0; i < i0 + R; ++i, g += kBlock)
#pragma GCC unroll 1
    for (int j = j0; j < j0 + W; j += V) {
      const vf e = exp2(load(g + j - j0));
      const vf z_a = splat(values_a.z[i]), z_b = load(values_b.z + j);
      const vf same = values_a.w[i] * (z_a / (z_a + e)) + load(values_b.w + j) * (z_b / (z_b + e));
      const vf other = e * (load(values_b.u + j) + values_a.u[i]);
      vf value = choose(load(b.keys + j) == a.keys[i], -same, other);
      if (diagonal) value = only(value, iota() != i - j);
      store(g + j - j0, value);
    }
}

PIPA_TARGET static void gradient(const Scores& scores, const Block& a, const Block& b,
                                 const RowValues& values_a, const RowValues& values_b,
                                 float* gradient_a, float* gradient_b) {
  alignas(64) float g[kBlock * kBlock];
  for (int j = 0; j < kBlock; j += W)
    for (int i = 0; i < kBlock; i += R) {
      const Tile c = cosines(a, b, i, j, scores.depth);
      float* tile = g + i * kBlock + j;
      if (kind_of(a.keys + i, b.keys + j) == Kind::apart) {
        gradient_tile(c, scores.scale, values_a.u + i, values_b.u + j, tile);
      } else {
        store_scores(c, scores.scale, tile, kBlock);
        mixed_gradient_tile(tile, a, b, values_a, values_b, i, j);
      }
    }
  update<kBlock, kBlock, 1>(g, b.rows, scores.depth, gradient_a);
  if (gradient_b) update<kBlock, 1, kBlock>(g, a.rows, scores.depth, gradient_b);
}

template <bool MIXED>
PIPA_INLINE void attend_tile(Tile c, float scale, const int32_t* keys_a, const int32_t* keys_b,
                             vf* row_sums, float* e) {  // [R, kBankBlock]
  const vi k0 = load(keys_b), k1 = load(keys_b + V);
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
    vf e0 = exp2(c.at[i][0] * scale - scale), e1 = exp2(c.at[i][1] * scale - scale);
    if (MIXED) {
      e0 = only(e0, differs(keys_a[i], k0));
      e1 = only(e1, differs(keys_a[i], k1));
    }
    row_sums[i] += e0 + e1;
    store(e + i * kBankBlock, e0);
    store(e + i * kBankBlock + V, e1);
  }
}

PIPA_TARGET static void attend(const Scores& scores, const Block& anchors, const Block& bank,
                               double* sums, float* output) {
  alignas(64) float e[kBlock * kBankBlock];
  vf row_sums[kBlock] = {};
  bool any = false;
  for (int j = 0; j < kBankBlock; j += W)
    for (int i = 0; i < kBlock; i += R) {
      const int32_t *keys_a = anchors.keys + i, *keys_b = bank.keys + j;
      const Kind kind = kind_of(keys_a, keys_b);
      float* tile = e + i * kBankBlock + j;
      if (kind == Kind::together) {
        for (int r = 0; r < R; ++r) std::memset(tile + r * kBankBlock, 0, W * sizeof(float));
        continue;
      }
      any = true;
      const Tile c = cosines(anchors, bank, i, j, scores.depth);
      if (kind == Kind::apart)
        attend_tile<false>(c, scores.scale, keys_a, keys_b, row_sums + i, tile);
      else
        attend_tile<true>(c, scores.scale, keys_a, keys_b, row_sums + i, tile);
    }
  if (!any) return;
  for (int i = 0; i < kBlock; ++i) sums[i] += add_lanes(row_sums[i]);
  update<kBankBlock, kBankBlock, 1>(e, bank.rows, scores.depth, output);
}

PIPA_TARGET static void pack(const float* values, int depth, int row, int size, float* rows,
                             int32_t* pairs, void* panels) {
  const int count = depth / kPerOperand;
  for (int d = 0; d < depth; d += V)
    store(rows + d / V * chunk_stride(size, V) + row * V, load(values + d));
#ifdef PIPA_DOT
  int32_t operands_of_row[kMaxDepth / kPerOperand];
  for (int d = 0; d < count; d += V) {
    const vi both = pair(load(values + 2 * d), load(values + 2 * d + V));
    store(operands_of_row + d, both);
    if (pairs) store(pairs + d / V * chunk_stride(size, V) + row * V, both);
  }
#else
  (void)pairs;
  const float* operands_of_row = values;
#endif
  if (!panels) return;
  operand* lane =
      static_cast<operand*>(panels) + static_cast<int64_t>(row / W) * count * W + row % W;
  for (int d = 0; d < count; ++d) lane[d * W] = operands_of_row[d];
}

const Kernels kernels = {V, kPerOperand, pack, sum, positives, gradient, attend};

}  // namespace PIPA_ISA
}  // namespace pipa
