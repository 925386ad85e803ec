// SPDX-License-Identifier: Apache-2.0
// The CUDA kernels compiled for a CPU, and the calls of them that tests make through ctypes.
#define PIPA_FAST_HOPPER 1
#include "cuda/patch_consistency.cu"
#include "cuda/patch_consistency_1024.cu"
#include "cuda/patch_consistency_128.cu"
#include "cuda/patch_consistency_2048.cu"
#include "cuda/patch_consistency_256.cu"
#include "cuda/patch_consistency_512.cu"
#include "cuda/patch_consistency_hopper_1024.cu"
#include "cuda/patch_consistency_hopper_128.cu"
#include "cuda/patch_consistency_hopper_256.cu"
#include "cuda/patch_consistency_hopper_512.cu"
#include "cuda/pixel_contrast.cu"
#include "cuda/pixel_contrast_1024.cu"
#include "cuda/pixel_contrast_128.cu"
#include "cuda/pixel_contrast_2048.cu"
#include "cuda/pixel_contrast_256.cu"
#include "cuda/pixel_contrast_512.cu"
#include "cuda/pixel_contrast_cosines.cu"
#include "cuda/pixel_contrast_hopper_1024.cu"
#include "cuda/pixel_contrast_hopper_128.cu"
#include "cuda/pixel_contrast_hopper_256.cu"
#include "cuda/pixel_contrast_hopper_512.cu"

namespace pipa::cuda {
bool use_hopper() { return emulator::hopper; }
}  // namespace pipa::cuda

using pipa::cuda::PixelContrast;

extern "C" {

void set_hopper(bool hopper) { pipa::cuda::emulator::hopper = hopper; }

void pixel_contrast_slots(const PixelContrast* problem, int* width, int* count) {
  const pipa::cuda::Slots slots = pipa::cuda::pixel_contrast_slots(*problem);
  *width = slots.width, *count = slots.count;
}

const char* pixel_contrast_denominators(const PixelContrast* problem, int width, int count,
                                        float* sums) {
  return pipa::cuda::pixel_contrast_denominators(*problem, {width, count}, sums, nullptr);
}

const char* pixel_contrast_positives(const PixelContrast* problem, const float* z, float* parts) {
  return pipa::cuda::pixel_contrast_positives(*problem, z, parts, nullptr);
}

const char* pixel_contrast_cosines(const PixelContrast* problem, float* tile_sums, float* sums) {
  return pipa::cuda::pixel_contrast_cosines(*problem, tile_sums, sums, nullptr);
}

const char* pixel_contrast_gradient(const PixelContrast* problem, const float* slopes,
                                    const float* of_keys, const int64_t* order, const float* factor,
                                    bool wide, void* grad_x) {
  return pipa::cuda::pixel_contrast_gradient(*problem, slopes, of_keys, order, factor, wide, grad_x,
                                             nullptr);
}

const char* patch_consistency_sums(const pipa::cuda::PatchConsistency* problem, int splits,
                                   float* z, float* o) {
  return pipa::cuda::patch_consistency_sums(*problem, splits, z, o, nullptr);
}
}
