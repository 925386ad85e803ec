// SPDX-License-Identifier: Apache-2.0
// The instructions that kernels for Hopper are made of besides those of device.h: bulk copies of
// tensors (TMA), barriers that count bytes, and products of a warpgroup (wgmma). sm_90a alone has
// them. As there, tests/csrc/cuda_emulator_hopper.h has all of this for a CPU.
#pragma once

#include "cuda/device.h"

namespace pipa::cuda {

constexpr int kWarpgroup = 128;  // threads
constexpr int kChunk = 128;      // bytes of a row that one swizzle and one bulk copy take

// How a matrix lies in global memory, for bulk copies; made by the host, see hopper_host.h.
struct alignas(128) TensorMap {  // as CUDA 13's CUtensorMap is; 12's needs 64
  char opaque[128];
};

}  // namespace pipa::cuda

#if defined(__CUDACC__)
#define PIPA_GRID_CONSTANT const __grid_constant__
// Code for other chips is not made: the kernel is empty there, and never started.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || !defined(__CUDA_ARCH__)
#define PIPA_HOPPER 1
#endif

namespace pipa::cuda {

PIPA_DEVICE uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// In shared memory: turns its phase once `arrivals` threads have arrived and all expected bytes
// are there.
struct Barrier {
  uint64_t state;
};
PIPA_DEVICE void barrier_init(Barrier* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(arrivals)
               : "memory");
}
// Before anyone uses what has been initialised.
PIPA_DEVICE void barrier_init_done() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
PIPA_DEVICE void barrier_arrive(Barrier* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
               : "memory");
}
PIPA_DEVICE void barrier_arrive_expect_tx(Barrier* barrier, int bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}
// As barrier_arrive, at the same barrier of a cluster's member-th block.
PIPA_DEVICE void barrier_arrive_at(Barrier* barrier, int member) {
  asm volatile(
      "{\n"
      ".reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(member)
      : "memory");
}
// Until the phase of this parity has ended.
PIPA_DEVICE void barrier_wait(Barrier* barrier, int parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// Rows and 16-bit columns from (row, column) on of a matrix, as its map cuts them, to shared memory
// at a multiple of 1,024 bytes: row r at 128 r, its pieces of 16 bytes swapped by r % 8. What is
// past the matrix's edges becomes 0.
PIPA_DEVICE void copy_box(void* to, const TensorMap* map, Barrier* barrier, int column, int row) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, "
      "%4}], [%2];" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(barrier)), "r"(column), "r"(row)
      : "memory");
}
// The same to this place of several blocks' shared memory, and to this barrier of theirs. members:
// a bit for each block of the cluster.
PIPA_DEVICE void copy_box_to(int members, void* to, const TensorMap* map, Barrier* barrier,
                             int column, int row) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%4, %5}], [%2], %3;" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(barrier)), "h"(static_cast<uint16_t>(members)), "r"(column),
      "r"(row)
      : "memory");
}
// bytes, a multiple of 16 as both addresses are, from global to shared memory.
PIPA_DEVICE void copy_bytes(void* to, const void* from, Barrier* barrier, int bytes) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}
// What this thread wrote to shared memory is there for products and bulk copies.
PIPA_DEVICE void fence_proxy_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// All threads of all blocks of the cluster, and what they did before.
PIPA_DEVICE void sync_cluster() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}
// Threads of some warps, by a barrier's number 1 ... 15.
PIPA_DEVICE void sync_some(int number, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

// Registers of each thread of a warpgroup from here on: a multiple of 8.
template <int kRegisters>
PIPA_DEVICE void shrink_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
PIPA_DEVICE void grow_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

PIPA_DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
PIPA_DEVICE void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>  // groups that may still be under way
PIPA_DEVICE void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// Results that a product may be writing to: nothing moves them across this.
template <int kEights>
PIPA_DEVICE void pin(float (&c)[kEights][4]) {
  PIPA_UNROLL
  for (int n = 0; n < kEights; ++n) PIPA_UNROLL
  for (int i = 0; i < 4; ++i) asm volatile("" : "+f"(c[n][i])::"memory");
}

// A matrix in shared memory, in the layout of copy_box (PTX ISA, "matrix descriptor", 128-byte
// swizzle): `leading` and `stride` are bytes from one 128-byte column of chunks, and from one eight
// of rows, to the next.
PIPA_DEVICE uint64_t matrix(const void* shared, int leading, int stride) {
  return (uint64_t{1} << 62) | static_cast<uint64_t>(stride >> 4) << 32 |
         static_cast<uint64_t>(leading >> 4) << 16 | (shared_address(shared) & 0x3ffff) >> 4;
}
// The same one, of which the compiler keeps no sums in registers from tile to tile.
PIPA_DEVICE uint64_t anew(uint64_t matrix) {
  asm volatile("" : "+l"(matrix));
  return matrix;
}
// `bytes`, a multiple of 16, on.
PIPA_DEVICE uint64_t advance(uint64_t matrix, int bytes) { return matrix + (bytes >> 4); }

// Numbers of the registers %i, eight in a string.
#define PIPA_R0 "%0, %1, %2, %3, %4, %5, %6, %7"
#define PIPA_R8 "%8, %9, %10, %11, %12, %13, %14, %15"
#define PIPA_R16 "%16, %17, %18, %19, %20, %21, %22, %23"
#define PIPA_R24 "%24, %25, %26, %27, %28, %29, %30, %31"
#define PIPA_R32 "%32, %33, %34, %35, %36, %37, %38, %39"
#define PIPA_R40 "%40, %41, %42, %43, %44, %45, %46, %47"
#define PIPA_R48 "%48, %49, %50, %51, %52, %53, %54, %55"
#define PIPA_R56 "%56, %57, %58, %59, %60, %61, %62, %63"
#define PIPA_R64 "%64, %65, %66, %67, %68, %69, %70, %71"
#define PIPA_R72 "%72, %73, %74, %75, %76, %77, %78, %79"
#define PIPA_R80 "%80, %81, %82, %83, %84, %85, %86, %87"
#define PIPA_R88 "%88, %89, %90, %91, %92, %93, %94, %95"
#define PIPA_R96 "%96, %97, %98, %99, %100, %101, %102, %103"
#define PIPA_R104 "%104, %105, %106, %107, %108, %109, %110, %111"
#define PIPA_R112 "%112, %113, %114, %115, %116, %117, %118, %119"
#define PIPA_R120 "%120, %121, %122, %123, %124, %125, %126, %127"
#define PIPA_C(i) "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3])
#define PIPA_C4(i) PIPA_C(i), PIPA_C(i + 1), PIPA_C(i + 2), PIPA_C(i + 3)
#define PIPA_C8(i) PIPA_C4(i), PIPA_C4(i + 4)
#define PIPA_C16(i) PIPA_C8(i), PIPA_C8(i + 8)

#define PIPA_REGISTERS_64 PIPA_R0 ", " PIPA_R8 ", " PIPA_R16 ", " PIPA_R24
#define PIPA_REGISTERS_128 PIPA_REGISTERS_64 ", " PIPA_R32 ", " PIPA_R40 ", " PIPA_R48 ", " PIPA_R56
#define PIPA_REGISTERS_256                                                                 \
  PIPA_REGISTERS_128 ", " PIPA_R64 ", " PIPA_R72 ", " PIPA_R80 ", " PIPA_R88 ", " PIPA_R96 \
                     ", " PIPA_R104 ", " PIPA_R112 ", " PIPA_R120

// c [64, columns] = or += a [64, 16] b [columns, 16] transposed, both in shared memory, rows of 16
// numbers of a K-major layout.
#define PIPA_PRODUCT_SHARED(columns, type, a_at, b_at, add_at, ...)                        \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, " add_at                              \
               ", 0;\nwgmma.mma_async.sync.aligned.m64n" #columns "k16.f32." type "." type \
               " {" PIPA_REGISTERS_##columns "}, " a_at ", " b_at ", add, 1, 1, 0, 0;\n}"  \
               : __VA_ARGS__                                                               \
               : "l"(a), "l"(b), "r"(static_cast<int>(add)))
// c [64, columns] = or += a [64, 16] b [16, columns], a in registers as multiply's, b in shared
// memory, rows of `columns` numbers.
#define PIPA_PRODUCT_REGISTERS(columns, type, a0, a1, a2, a3, b_at, add_at, ...)           \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, " add_at                              \
               ", 0;\nwgmma.mma_async.sync.aligned.m64n" #columns "k16.f32." type "." type \
               " {" PIPA_REGISTERS_##columns "}, {" a0 ", " a1 ", " a2 ", " a3 "}, " b_at  \
                                             ", add, 1, 1, 1;\n}"                          \
               : __VA_ARGS__                                                               \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)))

template <bool kFloat16>
PIPA_DEVICE void multiply_shared(float (&c)[8][4], uint64_t a, uint64_t b, bool add) {
  if constexpr (kFloat16)
    PIPA_PRODUCT_SHARED(64, "f16", "%32", "%33", "%34", PIPA_C8(0));
  else
    PIPA_PRODUCT_SHARED(64, "bf16", "%32", "%33", "%34", PIPA_C8(0));
}
template <bool kFloat16>
PIPA_DEVICE void multiply_shared(float (&c)[16][4], uint64_t a, uint64_t b, bool add) {
  if constexpr (kFloat16)
    PIPA_PRODUCT_SHARED(128, "f16", "%64", "%65", "%66", PIPA_C16(0));
  else
    PIPA_PRODUCT_SHARED(128, "bf16", "%64", "%65", "%66", PIPA_C16(0));
}
template <bool kFloat16>
PIPA_DEVICE void multiply_registers(float (&c)[8][4], const uint32_t (&a)[4], uint64_t b,
                                    bool add) {
  if constexpr (kFloat16)
    PIPA_PRODUCT_REGISTERS(64, "f16", "%32", "%33", "%34", "%35", "%36", "%37", PIPA_C8(0));
  else
    PIPA_PRODUCT_REGISTERS(64, "bf16", "%32", "%33", "%34", "%35", "%36", "%37", PIPA_C8(0));
}
template <bool kFloat16>
PIPA_DEVICE void multiply_registers(float (&c)[16][4], const uint32_t (&a)[4], uint64_t b,
                                    bool add) {
  if constexpr (kFloat16)
    PIPA_PRODUCT_REGISTERS(128, "f16", "%64", "%65", "%66", "%67", "%68", "%69", PIPA_C16(0));
  else
    PIPA_PRODUCT_REGISTERS(128, "bf16", "%64", "%65", "%66", "%67", "%68", "%69", PIPA_C16(0));
}
template <bool kFloat16>
PIPA_DEVICE void multiply_registers(float (&c)[32][4], const uint32_t (&a)[4], uint64_t b,
                                    bool add) {
  if constexpr (kFloat16)
    PIPA_PRODUCT_REGISTERS(256, "f16", "%128", "%129", "%130", "%131", "%132", "%133", PIPA_C16(0),
                           PIPA_C16(16));
  else
    PIPA_PRODUCT_REGISTERS(256, "bf16", "%128", "%129", "%130", "%131", "%132", "%133", PIPA_C16(0),
                           PIPA_C16(16));
}

}  // namespace pipa::cuda

#else
#include "cuda_emulator_hopper.h"
#endif
