// SPDX-License-Identifier: Apache-2.0
// Patch consistency: the same place in two crops against a bank of keys (ops.patch_consistency).
#pragma once

#include <cstdint>

#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"

namespace pipa {

struct PatchConsistency {
  Matrix anchors;                // [N, D] unit rows, D <= 512
  Matrix positives;              // [N, D] unit rows
  Matrix bank;                   // [M, D] unit rows
  const int64_t* anchor_labels;  // [N] negative: takes no part
  const int64_t* bank_labels;    // [M] negative: takes no part
  const float* weights;          // [N] or null for 1 each
  double temperature;            // 2 / temperature <= 80
};

// Floats of scratch: less than 4 N D' + a constant, D' = D padded to the vector width.
int64_t patch_consistency_scratch(const Matrix& anchors, const Matrix& bank, Isa isa);

void patch_consistency_forward(const PatchConsistency& problem, Isa isa, const Parallel& parallel,
                               float* scratch,        // [patch_consistency_scratch]
                               float* loss,           // []
                               float* grad_anchors);  // [N, D] of the loss

}  // namespace pipa
