// SPDX-License-Identifier: Apache-2.0
// Four lanes, which every 64-bit CPU has; no instruction beyond the compiler's baseline.
#define PIPA_ISA portable
#define PIPA_TARGET
#define PIPA_LANES 4
#define PIPA_TILE_ROWS 6
#include "cpu/kernels_body.h"
#include "cpu/upsample_body.h"

namespace pipa {

const Kernels& kernels_for(Isa isa, bool bfloat16) {
#if defined(__x86_64__)
  if (isa == Isa::avx512_bf16 && bfloat16) return avx512_bf16::kernels;
  if (isa == Isa::avx512_bf16 || isa == Isa::avx512) return avx512::kernels;
  if (isa == Isa::avx2) return avx2::kernels;
#endif
  return isa == Isa::portable_bf16 && bfloat16 ? portable_bf16::kernels : portable::kernels;
}

const UpsampleKernels& upsample_kernels_for(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::avx512_bf16 || isa == Isa::avx512) return avx512::upsample_kernels;
  if (isa == Isa::avx2) return avx2::upsample_kernels;
#endif
  (void)isa;
  return portable::upsample_kernels;
}

}  // namespace pipa
