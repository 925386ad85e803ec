// SPDX-License-Identifier: Apache-2.0
// The inner loops over upsampled maps, once per instruction set (upsample_body.h is their source).
#pragma once

#include <cstdint>

#include "cpu/isa.h"

namespace pipa {

constexpr int kMaxLanes = 16;  // of any variant: rows are padded by as many

// All pixels whose centres lie between two neighbouring rows of a map of logits.
struct Band {
  const float* above;   // [K, stride] the first w are the row, the others repeat its last
  const float* below;   // [K, stride] likewise; the same row where the map has one only
  int64_t stride;       // at least w + kMaxLanes
  int classes;          // K
  const int32_t* left;  // [W, padded] column at or left of a pixel's centre
  const float* right;   // [W, padded] share of the next column
  const float* lower;   // [rows] share of the row below
  int rows;             // of pixels
  int full;             // W
};

struct Targets {
  const int64_t* labels;  // [rows, W]
  const float* weights;   // [rows, W] or null for 1 each
  int64_t ignore_index;
};

// What takes the gradient of a band's two rows; null where none is wanted.
struct Slope {
  float* above;  // [K, stride] columns past w take zeros
  float* below;  // [K, stride]
};

struct LossSums {
  double loss = 0;    // sum of weight times cross-entropy
  int64_t count = 0;  // pixels that are not ignored
  int64_t wrong = 0;  // a label that is neither a class nor ignore_index, if `any_wrong`
  bool any_wrong = false;
};

struct UpsampleKernels {
  int lanes;

  // Adds a band's loss, and its gradient by the map's two rows.
  void (*cross_entropy)(const Band& band, const Targets& targets, const Slope& slope,
                        float* work,  // [5, K, lanes]
                        LossSums* sums);

  // Writes a band's likeliest classes and their probabilities; returns how many reach threshold.
  int64_t (*pseudo_labels)(const Band& band, float threshold,
                           float* work,         // [3, K, lanes]
                           int64_t* labels,     // [rows, W]
                           float* confidence);  // [rows, W]
};

const UpsampleKernels& upsample_kernels_for(Isa isa);

namespace portable {
extern const UpsampleKernels upsample_kernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const UpsampleKernels upsample_kernels;
}
namespace avx512 {
extern const UpsampleKernels upsample_kernels;
}
#endif

}  // namespace pipa
