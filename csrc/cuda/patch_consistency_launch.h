// SPDX-License-Identifier: Apache-2.0
// The launch of patch consistency's kernel, for one width of rows and one kind of number.
#pragma once

#include "cuda/launch.h"
#include "cuda/patch_consistency.h"
#include "cuda/patch_consistency_kernels.h"
#include "cuda/runtime.h"

namespace pipa::cuda {

// For sm_90a, in units of their own.
template <int kRowBytes, Number kNumber>
struct HopperPatchConsistencyLaunches {
  static const char* sums(const PatchConsistency& p, int splits, float* z, float* o, void* stream);
};

template <int kRowBytes, Number kNumber>
struct PatchConsistencyLaunches {
  using Attend = typename Shapes<kRowBytes>::template Gradient<kBytes<kNumber>>;

  static const char* sums(const PatchConsistency& p, int splits, float* z, float* o, void* stream) {
    if constexpr (kHopper && kHalf<kNumber>)
      if (use_hopper())
        return HopperPatchConsistencyLaunches<kRowBytes, kNumber>::sums(p, splits, z, o, stream);
    const int parts = blocks_of(p.row_bytes, Attend::kPart * kBytes<kNumber>);
    return launch(attend_kernel<Attend, kNumber>, blocks_of(p.n, Attend::kRows), parts * splits,
                  Attend::kThreads, attend_memory<Attend>(), stream, p, parts, z, o);
  }
};

}  // namespace pipa::cuda

// One translation unit a width of rows, so that a change compiles little again.
#define PIPA_PATCH_CONSISTENCY(bytes)                              \
  namespace pipa::cuda {                                           \
  template struct PatchConsistencyLaunches<bytes, Number::tf32>;   \
  template struct PatchConsistencyLaunches<bytes, Number::tf32x3>; \
  }
#define PIPA_PATCH_CONSISTENCY_HALF(bytes)                           \
  namespace pipa::cuda {                                             \
  template struct PatchConsistencyLaunches<bytes, Number::bfloat16>; \
  template struct PatchConsistencyLaunches<bytes, Number::float16>;  \
  }
