// SPDX-License-Identifier: Apache-2.0
// The likeliest class of each pixel of upsampled logits, and its odds (ops.pseudo_labels).
#pragma once

#include <cstdint>

#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/upsample.h"

namespace pipa {

// Floats of scratch: some 6 K for each thread, and a map for logits of another dtype than float32.
int64_t pseudo_labels_scratch(const Upsampling& maps, Isa isa, int threads);

void pseudo_labels(const Upsampling& maps, float threshold, Isa isa, const Parallel& parallel,
                   float* scratch,              // [pseudo_labels_scratch]
                   int64_t* labels,             // [images, height, width]
                   float* confidence,           // [images, height, width]
                   float* confident_fraction);  // [] of confidences of at least threshold

}  // namespace pipa
