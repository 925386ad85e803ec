// SPDX-License-Identifier: Apache-2.0
// Patch consistency on GPUs: what the host starts. The launcher returns what is wrong, or null.
#pragma once

#include <cstdint>

#include "cuda/limits.h"

namespace pipa::cuda {

struct PatchConsistency {
  const void* a;     // [n, row_bytes] anchors sorted by class, those that do not count last
  int64_t n;         // at least 1
  const void* keys;  // [m, row_bytes] sorted likewise
  int64_t m;
  int row_bytes;         // a multiple of 16, at most 2048
  Number number;         // how they are multiplied
  const int* first;      // [n] where the keys of an anchor's class begin
  const int* past;       // [n] and end
  const int* live;       // [] anchors that count
  const int* live_keys;  // [] keys that count
  float scale;           // log2(e) / temperature
  float shift;           // sums are of e times 2^shift
};

// Sums of e over keys of other classes, and of e times the key, each of `splits` shares of the
// keys.
const char* patch_consistency_sums(const PatchConsistency& problem, int splits,
                                   float* z,  // [splits, n]
                                   float* o,  // [splits, n, columns]
                                   void* stream);

}  // namespace pipa::cuda
