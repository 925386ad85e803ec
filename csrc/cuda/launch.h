// SPDX-License-Identifier: Apache-2.0
// How the host starts kernels; tests/csrc/cuda_emulator.h has the same for a CPU.
#pragma once

#include "cuda/device.h"
#include "cuda/schedule.h"

#if defined(__CUDACC__)

namespace pipa::cuda {

// Starts a kernel as a launch is set up; returns what is wrong, or null. The runtime's last error
// is not asked for: an earlier call's would stay there.
template <class... Parameters, class... Arguments>
const char* launch_as(const cudaLaunchConfig_t& config, void (*kernel)(Parameters...),
                      Arguments... arguments) {
  cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                            static_cast<int>(config.dynamicSmemBytes));
  if (status == cudaSuccess) status = cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

// The same, of these sizes.
template <class... Parameters, class... Arguments>
const char* launch(void (*kernel)(Parameters...), int grid_x, int grid_y, int threads,
                   int shared_bytes, void* stream, Arguments... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(grid_x, grid_y);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  return launch_as(config, kernel, arguments...);
}

// As launch, of clusters of so many blocks that follow one another along x: as many as hold
// `blocks`.
template <class... Parameters, class... Arguments>
const char* launch_clusters(void (*kernel)(Parameters...), int cluster, int blocks, int grid_y,
                            int threads, int shared_bytes, void* stream, Arguments... arguments) {
  cudaLaunchAttribute of_cluster;
  of_cluster.id = cudaLaunchAttributeClusterDimension;
  of_cluster.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(blocks_of(blocks, cluster) * cluster, grid_y);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &of_cluster;
  config.numAttrs = 1;
  return launch_as(config, kernel, arguments...);
}

}  // namespace pipa::cuda
#endif
