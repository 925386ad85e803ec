// SPDX-License-Identifier: Apache-2.0
// The kernels over upsampled maps of one instruction set. Included once each by kernels_*.cpp after
// kernels_body.h, whose vectors they use.
//
// A vector holds neighbouring pixels of a row, and one class at a time passes through it. Along x a
// band's two rows of the map are brought to V pixels once and kept, as are the sums that go back;
// each row of pixels between them then costs one multiply-add per logit.
#include "cpu/upsample_kernels.h"

namespace pipa {
namespace PIPA_ISA {

constexpr float kLog2E = 1.44269504f, kLn2 = 0.69314718f;

PIPA_INLINE vf greater(vf a, vf b) { return a > b ? a : b; }

// log x for normal x of at least 1; NaN stays NaN.
PIPA_INLINE vf log_from_one(vf x) {
  const vi exponent = ((vi)x - 0x3f3504f3) >> 23;  // leaves a mantissa in [sqrt(1/2), sqrt(2))
  const vf mantissa = (vf)((vi)x - (exponent << 23));
  const vf y = (mantissa - 1.0f) / (mantissa + 1.0f);
  return __builtin_convertvector(exponent, vf) * kLn2 + twice_atanh(y) + (x - x);
}

// Brings the rows above and below to pixels x .. x + V - 1. Which columns these lie between is in
// the weights, so any scale will do; where maps are enlarged it takes few columns.
PIPA_INLINE void interpolate_tile(const Band& band, int x,
                                  float* upper,   // [K, V] logits in the row above
                                  float* step) {  // [K, V] what is added towards the row below
  constexpr int C = 4;                            // columns at a time
  const vi left = load(band.left + x);
  const vf right = load(band.right + x);
  const int first = band.left[x], last = band.left[x + V - 1] + 1;
  for (int c = first; c <= last; c += C) {
    vf mix[C];
#pragma GCC unroll 4
    for (int j = 0; j < C; ++j) {
      mix[j] = only(1.0f - right, left == c + j) + only(right, left == c + j - 1);
    }
    const float *a = band.above + c, *b = band.below + c;
    for (int k = 0; k < band.classes; ++k, a += band.stride, b += band.stride) {
      vf sum = c == first ? vf{} : load(upper + k * V),
         rise = c == first ? vf{} : load(step + k * V);
#pragma GCC unroll 4
      for (int j = 0; j < C; ++j) {
        const float value = a[j];
        sum += mix[j] * value;
        rise += mix[j] * (b[j] - value);
      }
      store(upper + k * V, sum);
      store(step + k * V, rise);
    }
  }
}

// The transpose of interpolate_tile: hands V pixels' sums back to the columns that they came from.
PIPA_INLINE void spread_tile(const Band& band, int x,
                             const float* whole,  // [K, V] slopes of the pixels
                             const float* lower,  // [K, V] and their part of the row below
                             const Slope& slope) {
  const int first = band.left[x], last = band.left[x + V - 1] + 1;
  for (int c = first; c <= last; c += V) {
    vf mix[V];
    for (int i = 0; i < V; ++i) {
      const vi offset = splat(band.left[x + i] - c) - iota();
      mix[i] = only(splat(1.0f - band.right[x + i]), offset == 0) +
               only(splat(band.right[x + i]), offset == -1);
    }
    float *above = slope.above + c, *below = slope.below + c;
    for (int k = 0; k < band.classes; ++k, above += band.stride, below += band.stride) {
      vf all = {}, part = {};
#pragma GCC unroll 16
      for (int i = 0; i < V; ++i) {
        all += mix[i] * whole[k * V + i];
        part += mix[i] * lower[k * V + i];
      }
      store(above, load(above) + (all - part));
      store(below, load(below) + part);
    }
  }
}

// Labels and weights of V pixels of a row. Those that take no part have factor 0 and label 0.
struct TileTargets {
  int32_t label[V];
  float factor[V];
  int32_t live[V];  // all bits, or none
};

PIPA_INLINE int read_targets(const Targets& targets, int64_t at, int count, int classes,
                             TileTargets* tile, LossSums* sums) {
  int live = 0;
  for (int i = 0; i < V; ++i) {
    const int64_t label = i < count ? targets.labels[at + i] : targets.ignore_index;
    bool takes_part = label != targets.ignore_index;
    if (takes_part && static_cast<uint64_t>(label) >= static_cast<uint64_t>(classes)) {
      sums->any_wrong = true;
      sums->wrong = label;
      takes_part = false;
    }
    tile->label[i] = takes_part ? static_cast<int32_t>(label) : 0;
    tile->live[i] = -static_cast<int32_t>(takes_part);
    tile->factor[i] = !takes_part ? 0 : targets.weights ? targets.weights[at + i] : 1.0f;
    live += takes_part;
  }
  return live;
}

// Adds softmax minus one at the label, times the factor, and that times the share below.
PIPA_INLINE void add_slopes(const TileTargets& tile, vf sum, float share, int classes,
                            const float* e,                // [K, V]
                            float* whole, float* lower) {  // [K, V]
  const vf scale = only(load(tile.factor) / sum, load(tile.live));
  for (int k = 0; k < classes; ++k) {
    const vf value = load(e + k * V) * scale;
    store(whole + k * V, load(whole + k * V) + value);
    store(lower + k * V, load(lower + k * V) + value * share);
  }
  for (int i = 0; i < V; ++i) {
    const int at = tile.label[i] * V + i;
    whole[at] -= tile.factor[i];
    lower[at] -= tile.factor[i] * share;
  }
}

template <bool GRADIENT>
PIPA_INLINE void cross_entropy_tile(const Band& band, const Targets& targets, const Slope& slope,
                                    int x, float* work, LossSums* sums) {
  const int64_t size = static_cast<int64_t>(band.classes) * V;
  float *upper = work, *step = work + size, *value = work + 2 * size;  // [K, V] each
  float *whole = work + 3 * size, *lower = work + 4 * size;
  const int count = band.full - x < V ? band.full - x : V;
  bool any = false;
  vf loss = {};
  for (int row = 0; row < band.rows; ++row) {
    TileTargets tile;
    const int live = read_targets(targets, static_cast<int64_t>(row) * band.full + x, count,
                                  band.classes, &tile, sums);
    if (live == 0) continue;
    sums->count += live;
    if (!any) {
      interpolate_tile(band, x, upper, step);
      if (GRADIENT) std::memset(whole, 0, 2 * size * sizeof(float));
      any = true;
    }
    const float share = band.lower[row];
    vf top = load(upper) + load(step) * share;
    store(value, top);
    for (int k = 1; k < band.classes; ++k) {
      const vf logit = load(upper + k * V) + load(step + k * V) * share;
      store(value + k * V, logit);
      top = greater(logit, top);
    }
    float own[V];
    for (int i = 0; i < V; ++i) own[i] = value[tile.label[i] * V + i];
    vf sum = {};
    for (int k = 0; k < band.classes; ++k) {
      const vf e = exp2((load(value + k * V) - top) * kLog2E);
      sum += e;
      if (GRADIENT) store(value + k * V, e);
    }
    const vf each = (log_from_one(sum) + (top - load(own))) * load(tile.factor);
    loss += only(each, load(tile.live));
    if (GRADIENT) add_slopes(tile, sum, share, band.classes, value, whole, lower);
  }
  if (!any) return;
  sums->loss += add_lanes(loss);
  if (GRADIENT) spread_tile(band, x, whole, lower, slope);
}

PIPA_TARGET static void cross_entropy(const Band& band, const Targets& targets, const Slope& slope,
                                      float* work, LossSums* sums) {
  if (slope.above)
    for (int x = 0; x < band.full; x += V)
      cross_entropy_tile<true>(band, targets, slope, x, work, sums);
  else
    for (int x = 0; x < band.full; x += V)
      cross_entropy_tile<false>(band, targets, slope, x, work, sums);
}

PIPA_TARGET static int64_t pseudo_labels(const Band& band, float threshold, float* work,
                                         int64_t* labels, float* confidence) {
  const int64_t size = static_cast<int64_t>(band.classes) * V;
  float *upper = work, *step = work + size, *value = work + 2 * size;  // [K, V] each
  int64_t confident = 0;
  for (int x = 0; x < band.full && band.rows > 0; x += V) {
    interpolate_tile(band, x, upper, step);
    const int count = band.full - x < V ? band.full - x : V;
    for (int row = 0; row < band.rows; ++row) {
      const float share = band.lower[row];
      vf top = load(upper) + load(step) * share, sum = {};
      vi best = {};
      store(value, top);
      for (int k = 1; k < band.classes; ++k) {
        const vf logit = load(upper + k * V) + load(step + k * V) * share;
        store(value + k * V, logit);
        const vi better = logit > top;
        top = choose(better, logit, top);
        best = (splat(k) & better) | (best & ~better);
      }
      for (int k = 0; k < band.classes; ++k) sum += exp2((load(value + k * V) - top) * kLog2E);
      const vf odds = 1.0f / sum;
      const int64_t at = static_cast<int64_t>(row) * band.full + x;
      for (int i = 0; i < count; ++i) {
        confidence[at + i] = odds[i];
        labels[at + i] = best[i];
        confident += odds[i] >= threshold;
      }
    }
  }
  return confident;
}

const UpsampleKernels upsample_kernels = {V, cross_entropy, pseudo_labels};

}  // namespace PIPA_ISA
}  // namespace pipa
