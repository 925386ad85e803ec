// SPDX-License-Identifier: Apache-2.0
// What the host does to start kernels for Hopper.
#pragma once

#include "cuda/hopper.h"
#include "cuda/launch.h"

#if defined(__CUDACC__)
#include <cuda.h>

namespace pipa::cuda {

// For boxes of box_rows rows and kChunk bytes of x [n, row_bytes] of 16-bit numbers. Returns what
// is wrong, or null. The driver's function is looked up, so that nothing is linked to the driver.
inline const char* make_map(TensorMap* map, const void* x, int64_t n, int row_bytes, int box_rows) {
  using Encode =
      CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                   const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                   CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result;
#if CUDART_VERSION >= 12050
  const cudaError_t status = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found,
                                                              12000, cudaEnableDefault, &result);
#else
  const cudaError_t status =
      cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found, cudaEnableDefault, &result);
#endif
  if (status != cudaSuccess) return cudaGetErrorString(status);
  if (found == nullptr) return "the driver has no cuTensorMapEncodeTiled";
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(row_bytes / 2), static_cast<cuuint64_t>(n)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(row_bytes)};
  const cuuint32_t box[2] = {kChunk / 2, static_cast<cuuint32_t>(box_rows)}, steps[2] = {1, 1};
  static_assert(sizeof(TensorMap) == sizeof(CUtensorMap) &&
                alignof(TensorMap) % alignof(CUtensorMap) == 0);
  // Bits are moved as they are, whichever 16-bit numbers they mean.
  const CUresult made = reinterpret_cast<Encode>(found)(
      reinterpret_cast<CUtensorMap*>(map), CU_TENSOR_MAP_DATA_TYPE_UINT16, 2, const_cast<void*>(x),
      sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return made == CUDA_SUCCESS ? nullptr : "cuTensorMapEncodeTiled refuses the matrix";
}

}  // namespace pipa::cuda
#endif
