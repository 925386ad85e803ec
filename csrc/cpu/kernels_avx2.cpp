// SPDX-License-Identifier: Apache-2.0
// 6 x 16 tiles: 12 accumulators, 2 operands and a broadcast fill 15 of 16 registers.
#if defined(__x86_64__)
#define PIPA_ISA avx2
#define PIPA_TARGET __attribute__((target("avx2,fma")))
#define PIPA_LANES 8
#define PIPA_TILE_ROWS 6
#include "cpu/kernels_body.h"
#include "cpu/upsample_body.h"
#endif
