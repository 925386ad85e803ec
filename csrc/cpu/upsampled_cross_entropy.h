// SPDX-License-Identifier: Apache-2.0
// Cross-entropy of logits upsampled to the labels' size (ops.upsampled_cross_entropy).
#pragma once

#include <cstdint>

#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/upsample.h"

namespace pipa {

struct UpsampledCrossEntropy {
  Upsampling maps;
  const int64_t* labels;  // [images, height, width] classes, or ignore_index
  const float* weights;   // [images, height, width] or null for 1 each
  int64_t ignore_index;
  bool all_pixels;  // divides by the number of pixels, not of those that are not ignored
};

// Floats of scratch: some 10 K for each thread, at most a map of float32 logits for the rows that
// two chunks share where a gradient is wanted, and one for logits of another dtype.
int64_t upsampled_cross_entropy_scratch(const Upsampling& maps, Isa isa, int threads,
                                        bool with_slope);

// Returns false, with the label, where one is neither a class nor ignore_index.
bool upsampled_cross_entropy_forward(const UpsampledCrossEntropy& problem, Isa isa,
                                     const Parallel& parallel,
                                     float* scratch,  // [upsampled_cross_entropy_scratch]
                                     float* loss,     // []
                                     float* slope,    // [maps.values()] dL/dlogits, or null
                                     int64_t* wrong_label);

}  // namespace pipa
