// SPDX-License-Identifier: Apache-2.0
// Rows of features gathered and packed into blocks for the kernels.
#pragma once

#include <cstring>

#include "cpu/kernels.h"
#include "cpu/rows.h"

namespace pipa {

constexpr int kMaxDepth = 512;

inline int64_t blocks_of(int64_t rows, int size) { return (rows + size - 1) / size; }

struct Packed {
  int size;        // rows of a block: kBlock or kBankBlock
  int lanes;       // of the kernels that read it
  int depth;       // columns, padded to a multiple of lanes
  int64_t blocks;  // the last one is padded with rows of zeros
  float* rows;     // [blocks] as Block::rows
  float* panels;   // [blocks] as Block::panels, or null
  int32_t* keys;   // [blocks, size]

  Packed(Arena* arena, int64_t count, int64_t columns, int lanes, int size, bool with_panels)
      : size(size),
        lanes(lanes),
        depth(static_cast<int>(blocks_of(columns, lanes)) * lanes),
        blocks(blocks_of(count, size)),
        rows(arena->take<float>(offset(blocks))),
        panels(with_panels ? arena->take<float>(blocks * size * depth) : nullptr),
        keys(arena->take<int32_t>(blocks * size)) {}

  // Of a block within rows, or within anything laid out as they are.
  int64_t offset(int64_t block) const {
    return block * (depth / lanes) * chunk_stride(size, lanes);
  }

  Block block(int64_t index) const {
    return {rows + offset(index), panel(index), keys + index * size};
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
      kernels.pack(values, depth, row, size, rows + offset(index), panel(index));
    }
  }

 private:
  float* panel(int64_t index) const { return panels ? panels + index * size * depth : nullptr; }
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
