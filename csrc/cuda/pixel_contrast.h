// SPDX-License-Identifier: Apache-2.0
// Pixel contrast on GPUs: what the host starts. Every launcher returns what is wrong, or null.
#pragma once

#include <cstdint>

#include "cuda/limits.h"
#include "cuda/schedule.h"

namespace pipa::cuda {

// Rows, and the keys that they are contrasted with: themselves, or rows of others.
struct PixelContrast {
  const void* x;         // [n, row_bytes] rows sorted by class, those that take no part last
  int64_t n;             // at least 1
  int row_bytes;         // a multiple of 16, at most 2048
  Number number;         // how they are multiplied
  const int* first;      // [padded] where the keys of each row's class begin
  const int* past;       // [padded] and end
  const int* live;       // [] rows that take part
  const void* keys;      // [m, row_bytes] sorted likewise
  int64_t m;             // at least 1
  const int* live_keys;  // [] keys that take part
  bool itself;           // keys, m and live_keys are x, n and live; no row is a pair with itself
  bool all_form;         // denominator: all keys, or only those of other classes
  float scale;           // log2(e) / temperature
  int64_t padded;        // n rounded up to kPadding
};

// What the sums for the denominators need.
Slots pixel_contrast_slots(const PixelContrast& problem);

const char* pixel_contrast_denominators(const PixelContrast& problem, const Slots& slots,
                                        float* sums,  // [slots.count, padded], all 0
                                        void* stream);

// Sums of losses and slopes over positives, in the form `negatives`.
const char* pixel_contrast_positives(const PixelContrast& problem,
                                     const float* z,  // [padded]
                                     float* parts,    // [kParts, 2, padded], all 0
                                     void* stream);

// Sums of positives' cosines, which are all that the form `all` needs of them.
const char* pixel_contrast_cosines(const PixelContrast& problem,
                                   float* tile_sums,  // [m / kPadding rounded up, columns]
                                   float* sums,       // [padded], of rows that take part
                                   void* stream);

// Slopes are z, u and pair (an anchor's weight for each of its positives), 0 for what takes no
// part.
const char* pixel_contrast_gradient(const PixelContrast& problem,
                                    const float* slopes,   // [3, padded]
                                    const float* of_keys,  // [3, m rounded up to kPadding]
                                    const int64_t* order,  // [n] where each row came from
                                    const float* factor,   // [] of the whole gradient
                                    bool wide,     // the gradient is float32, or as the rows
                                    void* grad_x,  // [n, columns], in the first order
                                    void* stream);

}  // namespace pipa::cuda
