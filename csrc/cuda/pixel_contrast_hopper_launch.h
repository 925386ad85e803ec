// SPDX-License-Identifier: Apache-2.0
// The launches of pixel contrast's kernels for Hopper, for one width of rows.
#pragma once

#include "cuda/hopper_host.h"
#include "cuda/pixel_contrast_hopper_kernels.h"
#include "cuda/pixel_contrast_launch.h"

namespace pipa::cuda {

template <int kRowBytes, Number kNumber>
const char* HopperPixelContrastLaunches<kRowBytes, kNumber>::sum_apart(const PixelContrast& p,
                                                                       float* slots, int first,
                                                                       int width, void* stream) {
  using S = typename HopperShapes<kRowBytes>::Sum;
  static_assert(S::kRows == Shapes<kRowBytes>::Sum::kRows, "slots are for blocks of one size");
  const int blocks = blocks_of(p.n, S::kRows);
  TensorMap map;
  if (const char* wrong = make_map(&map, p.x, p.n, p.row_bytes, S::kBox)) return wrong;
  return launch_clusters(hopper_sum_apart_kernel<S, kNumber>, S::kCluster, blocks,
                         blocks_of(width, kRun), S::kThreads, memory_bytes<SumMemory<S>>(), stream,
                         map, p, slots, first, width,
                         least(first + width, past_offset(blocks, S::kCluster)));
}

template <int kRowBytes, Number kNumber>
const char* HopperPixelContrastLaunches<kRowBytes, kNumber>::sum_others(const PixelContrast& p,
                                                                        int shares, float* sums,
                                                                        void* stream) {
  using S = typename HopperShapes<kRowBytes>::Sum;
  TensorMap own, others;
  if (const char* wrong = make_map(&own, p.x, p.n, p.row_bytes, S::kBox)) return wrong;
  if (const char* wrong = make_map(&others, p.keys, p.m, p.row_bytes, S::kBox)) return wrong;
  return launch_clusters(hopper_sum_others_kernel<S, kNumber>, S::kCluster,
                         blocks_of(p.n, S::kRows), shares, S::kThreads,
                         memory_bytes<OthersMemory<S>>(), stream, own, others, p, sums);
}

template <int kRowBytes, Number kNumber>
const char* HopperPixelContrastLaunches<kRowBytes, kNumber>::gradient(const PixelContrast& p,
                                                                      const Slopes& slopes,
                                                                      const Slopes& of_keys,
                                                                      const Target& target,
                                                                      void* stream) {
  using S = typename HopperShapes<kRowBytes>::Gradient;
  TensorMap own, others;
  if (const char* wrong = make_map(&own, p.x, p.n, p.row_bytes, S::kBox)) return wrong;
  if (const char* wrong = make_map(&others, p.keys, p.m, p.row_bytes, S::kBox)) return wrong;
  return launch_clusters(hopper_gradient_kernel<S, kNumber>, S::kCluster, blocks_of(p.n, S::kRows),
                         blocks_of(p.row_bytes, S::kPart * kBytes<kNumber>), S::kThreads,
                         memory_bytes<GradientMemory<S>>(), stream, own, others, p, slopes, of_keys,
                         target);
}

}  // namespace pipa::cuda

#define PIPA_PIXEL_CONTRAST_HOPPER(bytes)                               \
  namespace pipa::cuda {                                                \
  template struct HopperPixelContrastLaunches<bytes, Number::bfloat16>; \
  template struct HopperPixelContrastLaunches<bytes, Number::float16>;  \
  }
