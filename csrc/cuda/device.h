// SPDX-License-Identifier: Apache-2.0
// The instructions that kernels are made of, for sm_80 and up.
//
// Kernels name threads, shared memory and instructions by what is here alone, so that another
// compiler can run them on a CPU (tests/csrc/cuda_emulator.h): what a GPU would do with the same
// source is then tested where there is none.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#include <cuda_runtime.h>

#define PIPA_DEVICE __device__ __forceinline__
#define PIPA_UNROLL _Pragma("unroll")
#define PIPA_KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)

namespace pipa::cuda {

constexpr int kWarp = 32;

PIPA_DEVICE int thread() { return threadIdx.x; }
PIPA_DEVICE int lane() { return threadIdx.x % kWarp; }
PIPA_DEVICE int warp() { return threadIdx.x / kWarp; }
PIPA_DEVICE int block_x() { return blockIdx.x; }
PIPA_DEVICE int block_y() { return blockIdx.y; }
PIPA_DEVICE int blocks_y() { return gridDim.y; }
PIPA_DEVICE void sync_threads() { __syncthreads(); }

PIPA_DEVICE char* shared_memory() {
  extern __shared__ __align__(128) char memory[];
  return memory;
}

PIPA_DEVICE float shuffle_xor(float value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

// 16 bytes from global to shared memory, or zeros if not `valid`; done once its group is waited
// for.
PIPA_DEVICE void copy_async(void* to, const void* from, bool valid) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from),
               "r"(valid ? 16 : 0)
               : "memory");
}
PIPA_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>  // groups that may still be under way
PIPA_DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Four 8 x 8 matrices of 16-bit numbers (or 8 x 4 of 32 bits), whose rows of 16 bytes lanes 0-7,
// 8-15, 16-23 and 24-31 point at: lane l gets row l / 4, bytes 4 (l % 4) of each.
PIPA_DEVICE void load_matrices(uint32_t (&to)[4], const void* row) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address));
}
// The same, transposed: lane l gets rows 2 (l % 4) and one more, column l / 4.
PIPA_DEVICE void load_transposed(uint32_t (&to)[4], const void* row) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address));
}

// c [16, 8] += a [16, 16] b [16, 8]; fragments as PTX lays them out (m16n8k16, m16n8k8).
PIPA_DEVICE void multiply_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
      "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
PIPA_DEVICE void multiply_f16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, "
      "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
PIPA_DEVICE void multiply_tf32(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, "
      "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two floats to two 16-bit numbers, `low` in the lower half.
PIPA_DEVICE uint32_t pack_bf16(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
PIPA_DEVICE uint32_t pack_f16(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
PIPA_DEVICE float unpack_f16(uint16_t bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}
PIPA_DEVICE uint32_t bits_of(float value) { return __float_as_uint(value); }
PIPA_DEVICE float float_of(uint32_t bits) { return __uint_as_float(bits); }
// To the nearest number with TF32's 10 bits of mantissa.
PIPA_DEVICE uint32_t round_tf32(float value) {
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(value));
  return rounded;
}

PIPA_DEVICE float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// To an ulp: lg2.approx is off by 2^-22 near 1, and by two ulps elsewhere.
PIPA_DEVICE float log2_exact(float x) { return log2f(x); }
PIPA_DEVICE float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// The compiler keeps loads on their side of this, so that fewer values wait in registers. The
// assembler, ptxas, need not: what it makes of it is seen in the table of docs/cuda.md alone.
PIPA_DEVICE void keep_loads_apart() { asm volatile("" ::: "memory"); }

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

}  // namespace pipa::cuda

#else
#include "cuda_emulator.h"
#endif
