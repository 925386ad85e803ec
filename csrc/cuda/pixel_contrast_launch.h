// SPDX-License-Identifier: Apache-2.0
// The launches of pixel contrast's kernels, for one width of rows and one kind of number.
#pragma once

#include "cuda/launch.h"
#include "cuda/pixel_contrast.h"
#include "cuda/pixel_contrast_kernels.h"
#include "cuda/runtime.h"

namespace pipa::cuda {

// Of `rows` rows or keys.
inline Slopes slopes_of(const float* slopes, int64_t rows) {
  const int64_t padded = int64_t{kPadding} * blocks_of(rows, kPadding);
  return {slopes, slopes + padded, slopes + 2 * padded};
}

// For sm_90a, in units of their own.
template <int kRowBytes, Number kNumber>
struct HopperPixelContrastLaunches {
  static const char* sum_apart(const PixelContrast& p, float* slots, int first, int width,
                               void* stream);
  static const char* sum_others(const PixelContrast& p, int shares, float* sums, void* stream);
  static const char* gradient(const PixelContrast& p, const Slopes& slopes, const Slopes& of_keys,
                              const Target& target, void* stream);
};

template <int kRowBytes, Number kNumber>
struct PixelContrastLaunches {
  using Sum = typename Shapes<kRowBytes>::Sum;
  using Gradient = typename Shapes<kRowBytes>::template Gradient<kBytes<kNumber>>;

  // `width` offsets from `first` on.
  static const char* sum_apart(const PixelContrast& p, float* slots, int first, int width,
                               void* stream) {
    if constexpr (kHopper && kHalf<kNumber>)
      if (use_hopper())
        return HopperPixelContrastLaunches<kRowBytes, kNumber>::sum_apart(p, slots, first, width,
                                                                          stream);
    const int blocks = blocks_of(p.n, Sum::kRows);
    return launch(sum_apart_kernel<Sum, kNumber>, blocks, blocks_of(width, kRun), Sum::kThreads,
                  sum_memory<Sum>(), stream, p, slots, first, width,
                  least(first + width, past_offset(blocks, Sum::kCluster)));
  }

  static const char* sum_others(const PixelContrast& p, int shares, float* sums, void* stream) {
    if constexpr (kHopper && kHalf<kNumber>)
      if (use_hopper())
        return HopperPixelContrastLaunches<kRowBytes, kNumber>::sum_others(p, shares, sums, stream);
    return launch(sum_others_kernel<Sum, kNumber>, blocks_of(p.n, Sum::kRows), shares,
                  Sum::kThreads, others_memory<Sum>(), stream, p, sums);
  }

  static const char* denominators(const PixelContrast& p, const Slots& slots, float* sums,
                                  void* stream) {
    if (!p.itself) return sum_others(p, slots.count, sums, stream);
    const int blocks = blocks_of(p.n, Sum::kRows);
    for (int first = 1; first < past_offset(blocks, kMostCluster); first += slots.width)
      if (const char* wrong = sum_apart(p, sums, first, slots.width, stream)) return wrong;
    return launch(sum_mixed_kernel<Sum, kNumber, Wanted::denominator>, blocks, kParts,
                  Sum::kThreads, mixed_memory<Sum>(), stream, p, static_cast<const float*>(nullptr),
                  sums + slot_of_part(0, slots.width) * p.padded);
  }

  static const char* positives(const PixelContrast& p, const float* z, float* parts, void* stream) {
    return launch(sum_mixed_kernel<Sum, kNumber, Wanted::positives>, blocks_of(p.n, Sum::kRows),
                  kParts, Sum::kThreads, mixed_memory<Sum>(), stream, p, z, parts);
  }

  static const char* gradient(const PixelContrast& p, const Slopes& slopes, const Slopes& of_keys,
                              const Target& target, void* stream) {
    if constexpr (kHopper && kHalf<kNumber>)
      if (use_hopper())
        return HopperPixelContrastLaunches<kRowBytes, kNumber>::gradient(p, slopes, of_keys, target,
                                                                         stream);
    const int parts = blocks_of(p.row_bytes, Gradient::kPart * kBytes<kNumber>);
    return launch(gradient_kernel<Gradient, kNumber>, blocks_of(p.n, Gradient::kRows), parts,
                  Gradient::kThreads, gradient_memory<Gradient>(), stream, p, slopes, of_keys,
                  target);
  }
};

}  // namespace pipa::cuda

// One translation unit a width of rows, so that a change compiles little again.
#define PIPA_PIXEL_CONTRAST(bytes)                              \
  namespace pipa::cuda {                                        \
  template struct PixelContrastLaunches<bytes, Number::tf32>;   \
  template struct PixelContrastLaunches<bytes, Number::tf32x3>; \
  }
#define PIPA_PIXEL_CONTRAST_HALF(bytes)                           \
  namespace pipa::cuda {                                          \
  template struct PixelContrastLaunches<bytes, Number::bfloat16>; \
  template struct PixelContrastLaunches<bytes, Number::float16>;  \
  }
