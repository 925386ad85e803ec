// SPDX-License-Identifier: Apache-2.0
// Pixel contrast of rows that are some of many: what their pairs with keys add to each of them. The
// keys are the rows themselves, or rows of other ranks, and what all keys add is summed by the
// caller (docs: ops/_pixel_contrast_ranks.py).
#pragma once

#include "cpu/pixel_contrast.h"

namespace pipa {

// What is saved of each row, in its order.
struct SavedRows {
  const float* z;  // sum of e over the denominator, of all keys
  const float* u;  // the gradient's row factor
  const float* w;  // anchor's weight over its number of positives
};

struct OtherRanks {
  Matrix x;               // [M, D] unit rows of the rows' dtype
  const int64_t* labels;  // [M]
  SavedRows saved;        // [M], read by pulls alone
};

// Floats of scratch that each of the three needs: less than 4 N D' + a constant. `others` is null,
// here and below, where the rows are their own keys; weights of `rows` are not read.
int64_t pixel_contrast_ranks_scratch(const Matrix& rows, const Matrix* others, Isa isa);

void pixel_contrast_denominators(const PixelContrast& rows, const OtherRanks* others, Isa isa,
                                 const Parallel& parallel,
                                 float* scratch,  // [pixel_contrast_ranks_scratch]
                                 float* z);       // [N] sum of e over these keys

void pixel_contrast_positives(const PixelContrast& rows, const OtherRanks* others, Isa isa,
                              const Parallel& parallel, float* scratch,
                              const float* z,  // [N] of all keys
                              float* losses,   // [N] sum of the losses of positives
                              float* slopes);  // [N] and of their derivatives by log z

void pixel_contrast_pulls(const PixelContrast& rows, const OtherRanks* others, Isa isa,
                          const Parallel& parallel, float* scratch,
                          const SavedRows& saved,  // [N]
                          float* pulls);           // [N, D] G x

}  // namespace pipa
