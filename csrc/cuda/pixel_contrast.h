// SPDX-License-Identifier: Apache-2.0
// Pixel contrast on GPUs: what the host starts. Every launcher returns what is wrong, or null.
#pragma once

#include <cstdint>

#include "cuda/limits.h"
#include "cuda/schedule.h"

namespace pipa::cuda {

struct PixelContrast {
  const void* x;     // [n, row_bytes] rows sorted by class, those that take no part last
  int64_t n;         // at least 1
  int row_bytes;     // a multiple of 16, at most 2048
  Number number;     // how they are multiplied
  const int* first;  // [padded] where each row's class begins
  const int* past;   // [padded] and ends
  const int* live;   // [] rows that take part
  bool all_form;     // denominator: all other rows, or only those of other classes
  float scale;       // log2(e) / temperature
  int64_t padded;    // n rounded up to kPadding
};

// What the sums for the denominators need.
Slots pixel_contrast_slots(int64_t n, int row_bytes, int columns);

const char* pixel_contrast_denominators(const PixelContrast& problem, const Slots& slots,
                                        float* sums,  // [slots.count, padded], all 0
                                        void* stream);

// Sums of losses and slopes over positives; in the form `all`, of their cosines in place of losses.
const char* pixel_contrast_positives(const PixelContrast& problem,
                                     const float* z,  // [padded]
                                     float* parts,    // [kParts, 2, padded]
                                     void* stream);

const char* pixel_contrast_gradient(const PixelContrast& problem,
                                    const float* z,  // [padded], as are u and pair: 0 where
                                    const float* u,  // a row takes no part
                                    const float* pair,
                                    const int64_t* order,  // [n] where each row came from
                                    const float* factor,   // [] of the whole gradient
                                    void* grad_x,          // [n, row_bytes], in the first order
                                    void* stream);

}  // namespace pipa::cuda
