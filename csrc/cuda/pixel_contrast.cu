// SPDX-License-Identifier: Apache-2.0
#include "cuda/pixel_contrast_launch.h"

namespace pipa::cuda {

namespace {

// Calls the launches for rows and numbers of the problem's kind.
template <class Call>
const char* with_launches_of(const PixelContrast& p, const Call& call) {
  return with_launches<PixelContrastLaunches>(p.row_bytes, p.number, call);
}

}  // namespace

Slots pixel_contrast_slots(const PixelContrast& p) {
  if (!p.itself) return {0, kParts};
  const int rows = with_width(
      p.row_bytes, [](auto width) -> int { return Shapes<decltype(width)::value>::Sum::kRows; });
  const bool half = p.number == Number::bfloat16 || p.number == Number::float16;
  return slots_of(p.n, rows, p.row_bytes / (half ? 2 : 4));
}

const char* pixel_contrast_denominators(const PixelContrast& problem, const Slots& slots,
                                        float* sums, void* stream) {
  return with_launches_of(
      problem, [&](auto launches) { return launches.denominators(problem, slots, sums, stream); });
}

const char* pixel_contrast_positives(const PixelContrast& problem, const float* z, float* parts,
                                     void* stream) {
  return with_launches_of(
      problem, [&](auto launches) { return launches.positives(problem, z, parts, stream); });
}

const char* pixel_contrast_gradient(const PixelContrast& problem, const float* slopes,
                                    const float* of_keys, const int64_t* order, const float* factor,
                                    bool wide, void* grad_x, void* stream) {
  const Target target = {order, factor, wide, static_cast<char*>(grad_x)};
  return with_launches_of(problem, [&](auto launches) {
    return launches.gradient(problem, slopes_of(slopes, problem.n), slopes_of(of_keys, problem.m),
                             target, stream);
  });
}

}  // namespace pipa::cuda
