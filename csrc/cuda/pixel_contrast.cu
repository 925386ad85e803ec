// SPDX-License-Identifier: Apache-2.0
#include "cuda/pixel_contrast_launch.h"

namespace pipa::cuda {

namespace {

template <int kRowBytes, class Call>
const char* with_number(Number number, const Call& call) {
  switch (number) {
    case Number::bfloat16:
      return call(Launches<kRowBytes, Number::bfloat16>{});
    case Number::float16:
      return call(Launches<kRowBytes, Number::float16>{});
    case Number::tf32:
      return call(Launches<kRowBytes, Number::tf32>{});
    case Number::tf32x3:
      return call(Launches<kRowBytes, Number::tf32x3>{});
  }
  return "no such number";
}

// Calls the launches for rows of this width.
template <class Call>
const char* with_launches(const PixelContrast& p, const Call& call) {
  if (p.row_bytes <= 128) return with_number<128>(p.number, call);
  if (p.row_bytes <= 256) return with_number<256>(p.number, call);
  if (p.row_bytes <= 512) return with_number<512>(p.number, call);
  if (p.row_bytes <= 1024) return with_number<1024>(p.number, call);
  return with_number<2048>(p.number, call);
}

int rows_of_a_sum(int row_bytes) {
  if (row_bytes <= 128) return Shapes<128>::Sum::kRows;
  if (row_bytes <= 256) return Shapes<256>::Sum::kRows;
  if (row_bytes <= 512) return Shapes<512>::Sum::kRows;
  if (row_bytes <= 1024) return Shapes<1024>::Sum::kRows;
  return Shapes<2048>::Sum::kRows;
}

}  // namespace

Slots pixel_contrast_slots(int64_t n, int row_bytes, int columns) {
  const int shifts = blocks_of(n, rows_of_a_sum(row_bytes)) / 2;
  const int most = columns > 8 ? columns : 8;  // of a launch: what bounds the memory
  const int width = shifts < most ? shifts : most;
  return {width, width + blocks_of(width, kRun) + kParts};
}

const char* pixel_contrast_denominators(const PixelContrast& problem, const Slots& slots,
                                        float* sums, void* stream) {
  return with_launches(
      problem, [&](auto launches) { return launches.denominators(problem, slots, sums, stream); });
}

const char* pixel_contrast_positives(const PixelContrast& problem, const float* z, float* parts,
                                     void* stream) {
  return with_launches(problem,
                       [&](auto launches) { return launches.positives(problem, z, parts, stream); });
}

const char* pixel_contrast_gradient(const PixelContrast& problem, const float* z, const float* u,
                                    const float* pair, const int64_t* order, const float* factor,
                                    void* grad_x, void* stream) {
  return with_launches(problem, [&](auto launches) {
    return launches.gradient(problem, {z, u, pair}, order, factor, grad_x, stream);
  });
}

}  // namespace pipa::cuda
