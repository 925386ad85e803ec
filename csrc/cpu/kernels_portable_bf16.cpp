// SPDX-License-Identifier: Apache-2.0
// The kernels of pairs of bfloat16 for any CPU: for tests, as it is slower than converting.
#define PIPA_ISA portable_bf16
#define PIPA_TARGET
#define PIPA_LANES 4
#define PIPA_TILE_ROWS 6
// The second of a pair first, as the instruction does. The first becomes a float by its shift.
#define PIPA_DOT(c, a, b)                                                    \
  ((c) + (vf)((a) & (int32_t)0xffff0000) * (vf)((b) & (int32_t)0xffff0000) + \
   (vf)((vi)(a) << 16) * (vf)((vi)(b) << 16))
#include "cpu/kernels_body.h"
