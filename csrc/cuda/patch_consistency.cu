// SPDX-License-Identifier: Apache-2.0
#include "cuda/patch_consistency_launch.h"

namespace pipa::cuda {

const char* patch_consistency_sums(const PatchConsistency& problem, int splits, float* z, float* o,
                                   void* stream) {
  return with_width(problem.row_bytes, [&](auto width) {
    return with_number(problem.number, [&](auto number) {
      constexpr int kWidth = decltype(width)::value;
      constexpr Number kNumber = decltype(number)::value;
      if constexpr (kOccurs<kWidth, kNumber>)
        return PatchConsistencyLaunches<kWidth, kNumber>::sums(problem, splits, z, o, stream);
      else
        return kTooWide;
    });
  });
}

}  // namespace pipa::cuda
