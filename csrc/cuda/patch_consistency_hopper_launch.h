// SPDX-License-Identifier: Apache-2.0
// The launch of patch consistency's kernel for Hopper, for one width of rows.
#pragma once

#include "cuda/hopper_host.h"
#include "cuda/patch_consistency_hopper_kernels.h"
#include "cuda/patch_consistency_launch.h"

namespace pipa::cuda {

template <int kRowBytes, Number kNumber>
const char* HopperPatchConsistencyLaunches<kRowBytes, kNumber>::sums(const PatchConsistency& p,
                                                                     int splits, float* z, float* o,
                                                                     void* stream) {
  using S = typename HopperShapes<kRowBytes>::Gradient;
  TensorMap own, others;
  if (const char* wrong = make_map(&own, p.a, p.n, p.row_bytes, S::kBox)) return wrong;
  // a map has at least a row; without keys no tile is copied
  const void* keys = p.m > 0 ? p.keys : p.a;
  const int64_t m = p.m > 0 ? p.m : 1;
  if (const char* wrong = make_map(&others, keys, m, p.row_bytes, S::kBox)) return wrong;
  const int parts = blocks_of(p.row_bytes, S::kPart * kBytes<kNumber>);
  return launch_clusters(hopper_attend_kernel<S, kNumber>, S::kCluster, blocks_of(p.n, S::kRows),
                         parts * splits, S::kThreads, memory_bytes<AttendMemory<S>>(), stream, own,
                         others, p, parts, z, o);
}

}  // namespace pipa::cuda

#define PIPA_PATCH_CONSISTENCY_HOPPER(bytes)                               \
  namespace pipa::cuda {                                                   \
  template struct HopperPatchConsistencyLaunches<bytes, Number::bfloat16>; \
  template struct HopperPatchConsistencyLaunches<bytes, Number::float16>;  \
  }
