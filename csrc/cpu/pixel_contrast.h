// SPDX-License-Identifier: Apache-2.0
// Pixel contrast: each pixel's class attracts it, other classes repel it (docs:
// ops.pixel_contrast).
#pragma once

#include <cstdint>

#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"

namespace pipa {

struct PixelContrast {
  Matrix x;               // [N, D] unit rows, D <= 512
  const int64_t* labels;  // [N]
  const float* weights;   // [N] of each anchor, or null for equal ones
  double temperature;     // 2 / temperature <= 80
  bool all_form;          // denominator: all other rows, or only those of other classes
  int64_t ignore_index;   // rows with this label take no part
};

// Floats of scratch that either direction needs for features of this shape and dtype: less than
// 4 N D' + a constant, D' = D padded to the vector width.
int64_t pixel_contrast_scratch(const Matrix& features, Isa isa, bool backward);

void pixel_contrast_forward(const PixelContrast& problem, Isa isa, const Parallel& parallel,
                            float* scratch,  // [pixel_contrast_scratch]
                            float* loss,     // []
                            float* z,        // [N] sum of e over the denominator
                            float* u);       // [N] the gradient's row factor

void pixel_contrast_backward(const PixelContrast& problem, Isa isa, const Parallel& parallel,
                             float* scratch,  // [pixel_contrast_scratch]
                             float grad,      // of the loss
                             const float* z,  // [N] from forward
                             const float* u,  // [N] from forward
                             void* grad_x);   // [N, D] in x's dtype

}  // namespace pipa
