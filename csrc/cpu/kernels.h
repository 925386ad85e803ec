// SPDX-License-Identifier: Apache-2.0
// The inner loops, over blocks of rows, once per instruction set (kernels_body.h is their source).
#pragma once

#include <cstdint>

#include "cpu/isa.h"

namespace pipa {

// Rows of a block. Divisible by every variant's tile, and two blocks of 128 columns stay in L2.
constexpr int kBlock = 96;
constexpr int kBankBlock = 64;         // keys: only their columns are tiled
constexpr int kCacheLine = 16;         // floats
constexpr int kMaxDepth = 512;         // columns of features
constexpr int32_t kNoRow = INT32_MAX;  // the key of padding; larger than any other

// Floats from one chunk of columns to the next in Block::rows. Without the extra line, the chunks
// of a tile would fall into few of the first cache's sets and push each other out.
constexpr int64_t chunk_stride(int size, int lanes) { return size * lanes + kCacheLine; }

// Packed features of consecutive rows, in the layouts that the tiles read.
// Lanes are a vector's floats. Cosines are products of operands: floats, or pairs of bfloat16 that
// hold two columns, `lanes` apart. Depth is D padded with zeros to whole vectors of operands.
struct Block {
  const float* rows;  // [depth / lanes, size, lanes], the first by chunk_stride: vectors along D,
                      // and broadcast where operands are floats
  const int32_t* pairs;  // [depth / (2 lanes), size, lanes], as rows: broadcast pairs, else null
  const void* panels;    // [size / (2 lanes), operands of a row, 2 lanes]: vectors along rows
  const int32_t* keys;   // [size] ascending; pairs of equal keys are positives, or left out
};

struct RowValues {
  const float* z;  // [size] sum over negatives
  const float* u;  // [size]
  const float* w;  // [size] anchor's weight over its number of positives
};

struct Scores {
  int depth;    // padded columns
  float scale;  // log2(e) / temperature: scores are (cosine - 1) * scale, powers of two
};

struct Kernels {
  int lanes;
  int per_operand;  // columns that an operand holds: 1, or 2 of bfloat16

  // Writes one row into the layouts of its block.
  void (*pack)(const float* values,  // [depth]
               int depth, int row, int size,
               float* rows,     // as Block::rows
               int32_t* pairs,  // as Block::pairs, or null
               void* panels);   // as Block::panels, or null

  // The three below add what pairs of rows of two blocks give the first one, and the second one too
  // where its results are not null. Both may be one block: a row is then no pair with itself.

  // Adds each row's sum of e over keys that differ.
  void (*sum)(const Scores& scores, const Block& a, const Block& b,
              double* sums_a,   // [kBlock]
              double* sums_b);  // [kBlock] or null

  // Adds softplus(log z - s) and its derivative over keys that agree.
  void (*positives)(const Scores& scores, const Block& a, const Block& b,
                    const float* log_z_a,  // [kBlock] log2 of z
                    const float* log_z_b,  // [kBlock], read where loss_b is not null
                    double* loss_a,        // [kBlock, 2] loss and derivative
                    double* loss_b);       // [kBlock, 2] or null

  // Adds G x, where G is the gradient by the scores.
  void (*gradient)(const Scores& scores, const Block& a, const Block& b, const RowValues& values_a,
                   const RowValues& values_b,
                   float* gradient_a,   // as Block::rows
                   float* gradient_b);  // as gradient_a, or null

  // Adds each anchor's sum of e, and of e times key, over the bank's keys that differ.
  void (*attend)(const Scores& scores,
                 const Block& anchors,  // kBlock rows; panels unused
                 const Block& bank,     // kBankBlock rows
                 double* sums,          // [kBlock]
                 float* output);        // as Block::rows
};

// Those whose products take bfloat16 as it is are for features that are bfloat16.
const Kernels& kernels_for(Isa isa, bool bfloat16);

namespace portable {
extern const Kernels kernels;
}
namespace portable_bf16 {
extern const Kernels kernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
namespace avx512_bf16 {
extern const Kernels kernels;
}
#endif

}  // namespace pipa
