// SPDX-License-Identifier: Apache-2.0
#include "cuda/runtime.h"

#include <cuda_runtime.h>

namespace pipa::cuda {

const char* runtime_why_not() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) return cudaGetErrorString(status);
  return count > 0 ? nullptr : "no device";
}

int runtime_version() { return CUDART_VERSION; }

int driver_version() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

}  // namespace pipa::cuda
