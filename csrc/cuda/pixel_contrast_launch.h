// SPDX-License-Identifier: Apache-2.0
// The launches of pixel contrast's kernels, for one width of rows and one kind of number.
#pragma once

#include "cuda/pixel_contrast.h"
#include "cuda/pixel_contrast_kernels.h"
#include "cuda/runtime.h"

namespace pipa::cuda {

inline Rows rows_of(const PixelContrast& p) {
  return {static_cast<const char*>(p.x),
          p.n,
          p.row_bytes,
          p.first,
          p.past,
          p.live,
          p.all_form,
          p.scale};
}

// For sm_90a, in units of their own.
template <int kRowBytes, Number kNumber>
struct HopperPixelContrastLaunches {
  static const char* sum_apart(const PixelContrast& p, float* slots, int first, int width,
                               int until, void* stream);
  static const char* gradient(const PixelContrast& p, const Slopes& slopes, const int64_t* order,
                              const float* factor, void* out, void* stream);
};

template <int kRowBytes, Number kNumber>
struct PixelContrastLaunches {
  using Sum = typename Shapes<kRowBytes>::Sum;
  using Gradient = typename Shapes<kRowBytes>::template Gradient<kBytes<kNumber>>;

  static const char* sum_apart(const PixelContrast& p, float* slots, int first, int width,
                               int until, void* stream) {
    if constexpr (kHopper && kHalf<kNumber>)
      if (use_hopper())
        return HopperPixelContrastLaunches<kRowBytes, kNumber>::sum_apart(p, slots, first, width,
                                                                          until, stream);
    return launch(sum_apart_kernel<Sum, kNumber>, blocks_of(p.n, Sum::kRows),
                  blocks_of(width, kRun), Sum::kThreads, sum_memory<Sum>(), stream, rows_of(p),
                  slots, p.padded, first, width, until);
  }

  static const char* denominators(const PixelContrast& p, const Slots& slots, float* sums,
                                  void* stream) {
    const int blocks = blocks_of(p.n, Sum::kRows), past = past_shift(blocks);
    for (int first = 1; first < past; first += slots.width) {
      const int until = least(first + slots.width, past);
      if (const char* wrong = sum_apart(p, sums, first, slots.width, until, stream)) return wrong;
    }
    return launch(sum_mixed_kernel<Sum, kNumber, Wanted::denominator>, blocks, kParts,
                  Sum::kThreads, mixed_memory<Sum>(), stream, rows_of(p),
                  static_cast<const float*>(nullptr),
                  sums + slot_of_part(0, slots.width) * p.padded, p.padded);
  }

  static const char* positives(const PixelContrast& p, const float* z, float* parts, void* stream) {
    return launch(sum_mixed_kernel<Sum, kNumber, Wanted::positives>, blocks_of(p.n, Sum::kRows),
                  kParts, Sum::kThreads, mixed_memory<Sum>(), stream, rows_of(p), z, parts,
                  p.padded);
  }

  static const char* gradient(const PixelContrast& p, const Slopes& slopes, const int64_t* order,
                              const float* factor, void* out, void* stream) {
    if constexpr (kHopper && kHalf<kNumber>)
      if (use_hopper())
        return HopperPixelContrastLaunches<kRowBytes, kNumber>::gradient(p, slopes, order, factor,
                                                                         out, stream);
    const int parts = blocks_of(p.row_bytes, Gradient::kPart * kBytes<kNumber>);
    return launch(gradient_kernel<Gradient, kNumber>, blocks_of(p.n, Gradient::kRows), parts,
                  Gradient::kThreads, gradient_memory<Gradient>(), stream, rows_of(p), slopes,
                  order, factor, static_cast<char*>(out));
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
