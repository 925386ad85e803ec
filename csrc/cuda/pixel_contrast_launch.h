// SPDX-License-Identifier: Apache-2.0
// Which shapes the kernels of pixel contrast are compiled for, and their launches. Every shape fits
// in the 99 KiB of shared memory that the smallest chips have.
#pragma once

#include "cuda/pixel_contrast.h"
#include "cuda/pixel_contrast_kernels.h"

namespace pipa::cuda {

template <int kRowBytes>
struct Shapes;  // of rows of at most so many bytes

template <>
struct Shapes<128> {
  using Sum = Shape<128, 128, 64, 4>;
  template <int kBytes>
  using Gradient = Shape<128, 128, 64, 4, 128 / kBytes>;
};
template <>
struct Shapes<256> {
  using Sum = Shape<256, 128, 64, 4>;
  template <int kBytes>
  using Gradient = Shape<256, 128, 32, 4, 256 / kBytes>;
};
template <>
struct Shapes<512> {
  using Sum = Shape<512, 128, 32, 4>;
  template <int kBytes>
  using Gradient = Shape<512, 64, 32, 4, 512 / kBytes>;
};
template <>
struct Shapes<1024> {
  using Sum = Shape<1024, 64, 16, 4>;
  template <int kBytes>
  using Gradient = Shape<1024, 64, 16, 4, 256>;
};
template <>
struct Shapes<2048> {
  using Sum = Shape<2048, 16, 16, 1>;
  template <int kBytes>
  using Gradient = Shape<2048, 16, 16, 1, 256>;
};

constexpr int blocks_of(int64_t n, int rows) { return static_cast<int>((n + rows - 1) / rows); }

template <int kRowBytes, Number kNumber>
struct Launches {
  using Sum = typename Shapes<kRowBytes>::Sum;
  using Gradient = typename Shapes<kRowBytes>::template Gradient<kBytes<kNumber>>;

  static Rows rows(const PixelContrast& p) {
    return {static_cast<const char*>(p.x), p.n,    p.row_bytes, p.first,
            p.past,                        p.live, p.all_form,  p.scale};
  }

  static const char* denominators(const PixelContrast& p, const Slots& slots, float* sums,
                                  void* stream) {
    const int blocks = blocks_of(p.n, Sum::kRows), past = blocks / 2 + 1;
    const int programs = blocks_of(slots.width, kRun);
    for (int first = 1; first < past; first += slots.width) {
      const int until = first + slots.width < past ? first + slots.width : past;
      if (const char* wrong = launch(sum_apart_kernel<Sum, kNumber>, blocks, programs,
                                     Sum::kThreads, sum_memory<Sum>(), stream, rows(p), sums,
                                     p.padded, first, slots.width, until))
        return wrong;
    }
    return launch(sum_mixed_kernel<Sum, kNumber, pipa::cuda::Sum::denominator>, blocks, kParts,
                  Sum::kThreads, mixed_memory<Sum>(), stream, rows(p),
                  static_cast<const float*>(nullptr), sums + (slots.width + programs) * p.padded,
                  p.padded);
  }

  static const char* positives(const PixelContrast& p, const float* z, float* parts,
                               void* stream) {
    return launch(sum_mixed_kernel<Sum, kNumber, pipa::cuda::Sum::positives>,
                  blocks_of(p.n, Sum::kRows), kParts, Sum::kThreads, mixed_memory<Sum>(), stream,
                  rows(p), z, parts, p.padded);
  }

  static const char* gradient(const PixelContrast& p, const Slopes& slopes, const int64_t* order,
                              const float* factor, void* out, void* stream) {
    const int parts = blocks_of(p.row_bytes, Gradient::kPart * kBytes<kNumber>);
    return launch(gradient_kernel<Gradient, kNumber>, blocks_of(p.n, Gradient::kRows), parts,
                  Gradient::kThreads, gradient_memory<Gradient>(), stream, rows(p), slopes, order,
                  factor, static_cast<char*>(out));
  }
};

}  // namespace pipa::cuda

// One translation unit a width of rows, so that a change compiles little again.
#define PIPA_WIDTH(bytes)                                                           \
  template struct pipa::cuda::Launches<bytes, pipa::cuda::Number::bfloat16>;       \
  template struct pipa::cuda::Launches<bytes, pipa::cuda::Number::float16>;        \
  template struct pipa::cuda::Launches<bytes, pipa::cuda::Number::tf32>;           \
  template struct pipa::cuda::Launches<bytes, pipa::cuda::Number::tf32x3>
