// SPDX-License-Identifier: Apache-2.0
// Pixel contrast on Hopper, of 16-bit numbers: the kernels that take almost all of the time.
// What they compute, and in which order, is told in pixel_contrast_kernels.h.
#pragma once

#include "cuda/hopper_tiles.h"
#include "cuda/pixel_contrast_kernels.h"

namespace pipa::cuda {

// Column sums of all warps, of two tiles by turns.
template <class S>
using SumMemory = HopperMemory<S, 2 * S::kWarps * S::kColumns>;
template <class S>
using OthersMemory = HopperMemory<S, 4>;
// u of each buffer's rows.
template <class S>
using GradientMemory = HopperMemory<S, S::kStages * S::kColumns>;

// As sum_apart_kernel.
template <class S, Number kNumber>
PIPA_KERNEL(S::kThreads, 1)
hopper_sum_apart_kernel(PIPA_GRID_CONSTANT TensorMap map, PixelContrast rows, float* slots,
                        int first_offset, int width, int past_offset) {
#if defined(PIPA_HOPPER)
  constexpr int kEights = S::kColumns / 8;
  const int live = *rows.live, begin = block_x() * S::kRows;
  const auto tiles = apart_tiles<S>(rows, first_offset, past_offset, live);
  const int index = tiles.next(0);
  if (index >= tiles.end()) return;
  auto& memory = aligned_memory<SumMemory<S>>();
  memory.begin();
  auto next = [&](int at) { return tiles.next(at + 1); };

  if (thread() >= S::kConsumers) {
    shrink_registers<S::kCopierRegisters>();
    if (thread() == S::kConsumers)
      copy_all<S>(
          memory, &map, &map, index, tiles.end(), 0, [&](int at) { return tiles.column(at); }, next,
          [](int, int, Barrier*) {});
    memory.end();
    return;
  }

  grow_registers<kMultiplierRegisters>();
  const int row = 16 * warp();
  float row_sums[1][2] = {};
  int half = 0;  // of the column sums
  auto add = [&](float (&s)[1][kEights][4], int at) {
    // The other blocks need its buffer, so that to leave out the product would win no time.
    if (S::kCluster > 1 && !tiles.meets(at, S::member())) return;
    float* partial = memory.numbers + half * S::kWarps * S::kColumns;  // [warps, columns]
    const int column = tiles.column(at);
    add_apart<S, S::kByFma>(s, row_sums, partial, rows.scale, begin, column, live);
    sync_some(1, S::kConsumers);  // who reads the other half has not met this one yet
    const int64_t slot = slot_of_shift(tiles.shift(at, S::member()), first_offset);
    add_columns<S>(partial, slots + slot * rows.padded + column);
    half ^= 1;
  };
  add_similarities<S, kNumber>(memory, index, tiles.end(), next, add);
  add_lanes_of_rows(row_sums);
  if (lane() % 4 == 0 && begin < live) {
    PIPA_UNROLL
    for (int h = 0; h < 2; ++h)
      slots[slot_of_program(block_y(), width) * rows.padded + begin + row +
            fragment_row(lane(), 0, h)] += row_sums[0][h];
  }
  memory.end();
#endif
}

// As sum_others_kernel.
template <class S, Number kNumber>
PIPA_KERNEL(S::kThreads, 1)
hopper_sum_others_kernel(PIPA_GRID_CONSTANT TensorMap own, PIPA_GRID_CONSTANT TensorMap others,
                         PixelContrast rows, float* out) {
#if defined(PIPA_HOPPER)
  constexpr int kEights = S::kColumns / 8;
  const int live = *rows.live, keys = *rows.live_keys, begin = block_x() * S::kRows;
  const KeyTiles<S> tiles = other_tiles<S>(rows, live, keys);
  const int high = tiles.share.high;
  const int column = tiles.next(tiles.share.low);
  if (S::lead() >= live || column >= high) return;
  auto& memory = aligned_memory<OthersMemory<S>>();
  memory.begin();
  auto next = [&](int at) { return tiles.next(at + S::kColumns); };

  if (thread() >= S::kConsumers) {
    shrink_registers<S::kCopierRegisters>();
    if (thread() == S::kConsumers)
      copy_all<S>(
          memory, &own, &others, column, high, 0, [](int at) { return at; }, next,
          [](int, int, Barrier*) {});
    memory.end();
    return;
  }

  grow_registers<kMultiplierRegisters>();
  const LaneRows<1> mine(rows.first, rows.past, begin + 16 * warp(), rows.all_form ? 0 : live);
  float sums[1][2] = {};
  add_similarities<S, kNumber>(memory, column, high, next, [&](float (&e)[1][kEights][4], int at) {
    add_exponentials<S::kByFma>(e, sums, rows.scale, 0, mine, tiles, at);
  });
  add_lanes_of_rows(sums);
  if (begin < live) store_sums(sums, mine, out + block_y() * rows.padded);
  memory.end();
#endif
}

// As gradient_kernel.
template <class S, Number kNumber>
PIPA_KERNEL(S::kThreads, 1)
hopper_gradient_kernel(PIPA_GRID_CONSTANT TensorMap own, PIPA_GRID_CONSTANT TensorMap others,
                       PixelContrast rows, Slopes slopes, Slopes of_keys, Target target) {
#if defined(PIPA_HOPPER)
  constexpr int kEights = S::kColumns / 8;
  const int live = *rows.live, keys = *rows.live_keys;
  const int begin = block_x() * S::kRows, part = block_y() * S::kPart;
  const bool any = S::lead() < live && keys > 0;
  auto& memory = aligned_memory<GradientMemory<S>>();
  memory.begin();
  auto next = [](int column) { return column + S::kColumns; };

  if (thread() >= S::kConsumers) {
    shrink_registers<S::kCopierRegisters>();
    if (thread() == S::kConsumers && any)
      copy_all<S>(
          memory, &own, &others, 0, keys, S::kColumns * 4, [](int at) { return at; }, next,
          [&](int column, int stage, Barrier* full) {
            copy_bytes(memory.numbers + stage * S::kColumns, of_keys.u + column, full,
                       S::kColumns * 4);
          });
    memory.end();
    return;
  }

  grow_registers<kMultiplierRegisters>();
  const int row = 16 * warp();
  float sum[1][S::kPart / 8][4] = {};
  static_assert(S::kCluster * S::kRows <= kPadding, "rows of a cluster have slopes, or zeros");
  if (any) {
    const Range range = class_range(rows, begin, begin + S::kRows, live);
    float own_u[1][2];
    PIPA_UNROLL
    for (int h = 0; h < 2; ++h) own_u[0][h] = slopes.u[begin + row + fragment_row(lane(), 0, h)];
    auto make = [&](float (&s)[1][kEights][4], int column, int stage) {
      const float* u = memory.numbers + stage * S::kColumns;
      if (range.meets(column, column + S::kColumns))
        entries<true, S::kByFma>(s, rows, slopes, of_keys, begin + row, column, live, own_u, u);
      else
        entries<false, S::kByFma>(s, rows, slopes, of_keys, begin + row, column, live, own_u, u);
    };
    multiply_entries<S, kNumber, Beyond::largest>(sum[0], memory, part, 0, keys, keys, next, make);
  }
  store_gradient<kNumber>(sum, rows, begin + row, part, live, target);
  memory.end();
#endif
}

}  // namespace pipa::cuda
