// SPDX-License-Identifier: Apache-2.0
#include "cuda/patch_consistency_launch.h"

namespace pipa::cuda {

const char* patch_consistency_sums(const PatchConsistency& problem, int splits, float* z, float* o,
                                   void* stream) {
  return with_launches<PatchConsistencyLaunches>(
      problem.row_bytes, problem.number,
      [&](auto launches) { return launches.sums(problem, splits, z, o, stream); });
}

}  // namespace pipa::cuda
