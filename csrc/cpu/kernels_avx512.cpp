// SPDX-License-Identifier: Apache-2.0
// 12 x 32 tiles: 24 accumulators, 2 operands and a broadcast fill 27 of 32 registers.
#if defined(__x86_64__)
#define PIPA_ISA avx512
#define PIPA_TARGET __attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")))
#define PIPA_LANES 16
#define PIPA_TILE_ROWS 12
#include "cpu/kernels_body.h"
#include "cpu/upsample_body.h"
#endif
