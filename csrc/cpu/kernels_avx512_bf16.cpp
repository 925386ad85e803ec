// SPDX-License-Identifier: Apache-2.0
// As kernels_avx512.cpp, with two products of bfloat16 in the place of one of floats.
#if defined(__x86_64__)
#include <immintrin.h>

#define PIPA_ISA avx512_bf16
#define PIPA_TARGET \
  __attribute__((target("avx512bf16,avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")))
#define PIPA_LANES 16
#define PIPA_TILE_ROWS 12
#define PIPA_DOT(c, a, b) (vf) _mm512_dpbf16_ps((__m512)(c), (__m512bh)(a), (__m512bh)(b))
#include "cpu/kernels_body.h"
#endif
