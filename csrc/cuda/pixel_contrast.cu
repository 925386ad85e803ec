// SPDX-License-Identifier: Apache-2.0
#include "cuda/pixel_contrast_launch.h"

namespace pipa::cuda {

namespace {

// Calls the launches for rows and numbers of the problem's kind.
template <class Call>
const char* with_launches(const PixelContrast& p, const Call& call) {
  return with_width(p.row_bytes, [&](auto width) {
    return with_number(p.number, [&](auto number) {
      constexpr int kWidth = decltype(width)::value;
      constexpr Number kNumber = decltype(number)::value;
      if constexpr (kOccurs<kWidth, kNumber>)
        return call(PixelContrastLaunches<kWidth, kNumber>{});
      else
        return kTooWide;
    });
  });
}

}  // namespace

Slots pixel_contrast_slots(int64_t n, int row_bytes, int columns) {
  const int rows = with_width(
      row_bytes, [](auto width) -> int { return Shapes<decltype(width)::value>::Sum::kRows; });
  return slots_of(n, rows, columns);
}

const char* pixel_contrast_denominators(const PixelContrast& problem, const Slots& slots,
                                        float* sums, void* stream) {
  return with_launches(
      problem, [&](auto launches) { return launches.denominators(problem, slots, sums, stream); });
}

const char* pixel_contrast_positives(const PixelContrast& problem, const float* z, float* parts,
                                     void* stream) {
  return with_launches(
      problem, [&](auto launches) { return launches.positives(problem, z, parts, stream); });
}

const char* pixel_contrast_gradient(const PixelContrast& problem, const float* z, const float* u,
                                    const float* pair, const int64_t* order, const float* factor,
                                    void* grad_x, void* stream) {
  return with_launches(problem, [&](auto launches) {
    return launches.gradient(problem, {z, u, pair}, order, factor, grad_x, stream);
  });
}

}  // namespace pipa::cuda
