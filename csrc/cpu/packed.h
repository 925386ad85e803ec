// SPDX-License-Identifier: Apache-2.0
// Rows of features gathered and packed into blocks for the kernels.
#pragma once

#include <algorithm>
#include <cstring>

#include "cpu/kernels.h"
#include "cpu/rows.h"

namespace pipa {

constexpr double kLog2E = 1.4426950408889634;

inline int64_t blocks_of(int64_t rows, int size) { return (rows + size - 1) / size; }

// Rows of a slab, in whole blocks, of m that pass by n: three quarters of n keep the scratch below
// its bound, and 4096 rows in the cache that cores share.
inline int64_t slab_rows(int64_t n, int64_t m, int size) {
  const int64_t wanted = std::min({m, int64_t{4096}, n * 3 / 4});
  return std::max<int64_t>(size, wanted / size * size);
}

// On which sides of a product rows stand: what is broadcast is the left one, panels the right one.
enum class Side { left, right, both };

struct Packed {
  int size;         // rows of a block: kBlock or kBankBlock
  int lanes;        // of the kernels that read it
  int per_operand;  // likewise
  int depth;        // columns, padded to whole vectors of operands
  int64_t blocks;   // the last one is padded with rows of zeros
  float* rows;      // [blocks] as Block::rows
  int32_t* pairs;   // [blocks] as Block::pairs, or null
  float* panels;    // [blocks] as Block::panels, or null
  int32_t* keys;    // [blocks, size]

  Packed(Arena* arena, int64_t count, int64_t columns, const Kernels& kernels, int size, Side side)
      : size(size),
        lanes(kernels.lanes),
        per_operand(kernels.per_operand),
        depth(static_cast<int>(blocks_of(columns, lanes * per_operand)) * lanes * per_operand),
        blocks(blocks_of(count, size)),
        rows(arena->take<float>(offset(blocks))),
        pairs(per_operand > 1 && side != Side::right
                  ? arena->take<int32_t>(offset(blocks) / per_operand)
                  : nullptr),
        panels(side != Side::left ? arena->take<float>(panel_offset(blocks)) : nullptr),
        keys(arena->take<int32_t>(blocks * size)) {}

  // Of a block within rows, or within anything laid out as they are.
  int64_t offset(int64_t block) const {
    return block * (depth / lanes) * chunk_stride(size, lanes);
  }

  Block block(int64_t index) const {
    return {rows + offset(index), pairs_of(index), panels_of(index), keys + index * size};
  }

  // Gathers the rows of one block; keys are the caller's to write.
  void pack_block(const Kernels& kernels, const Matrix& source, int64_t index,
                  const int32_t* order,  // [count] rows of source
                  int64_t count) const {
    float values[kMaxDepth] = {};  // columns past source's stay zero
    for (int row = 0; row < size; ++row) {
      const int64_t position = index * size + row;
      if (position < count)
        load_row(source, order[position], values);
      else
        for (int d = 0; d < depth; ++d) values[d] = 0;
      kernels.pack(values, depth, row, size, rows + offset(index), pairs_of(index),
                   panels_of(index));
    }
  }

 private:
  int64_t panel_offset(int64_t block) const { return block * size * depth / per_operand; }
  float* panels_of(int64_t block) const { return panels ? panels + panel_offset(block) : nullptr; }
  int32_t* pairs_of(int64_t block) const {
    return pairs ? pairs + offset(block) / per_operand : nullptr;
  }
};

// A row within blocks laid out as Packed::rows.
struct RowView {
  float* at;  // the row's first lanes
  int lanes;
  int depth;
  int64_t stride;  // floats from one chunk of lanes to the next

  RowView(const Packed& packed, float* blocks, int64_t row)
      : at(blocks + packed.offset(row / packed.size) + row % packed.size * packed.lanes),
        lanes(packed.lanes),
        depth(packed.depth),
        stride(chunk_stride(packed.size, packed.lanes)) {}

  void read(float* values) const {  // [depth]
    for (int d = 0; d < depth; d += lanes)
      std::memcpy(values + d, at + d / lanes * stride, lanes * sizeof(float));
  }
  void write(const float* values) const {  // [depth]
    for (int d = 0; d < depth; d += lanes)
      std::memcpy(at + d / lanes * stride, values + d, lanes * sizeof(float));
  }
};

}  // namespace pipa
