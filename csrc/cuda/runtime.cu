// SPDX-License-Identifier: Apache-2.0
#include "cuda/runtime.h"

#include <cuda_runtime.h>

#include <cstdlib>
#include <cstring>

namespace pipa::cuda {

const char* runtime_why_not() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) return cudaGetErrorString(status);
  return count > 0 ? nullptr : "no device";
}

bool use_hopper() {
  const char* wanted = std::getenv("PIPA_FAST_HOPPER");
  if (wanted != nullptr && std::strcmp(wanted, "0") == 0) return false;
  int device = 0, major = 0, minor = 0;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
         cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess &&
         major == 9 && minor == 0;
}

int runtime_version() { return CUDART_VERSION; }

int driver_version() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

}  // namespace pipa::cuda
