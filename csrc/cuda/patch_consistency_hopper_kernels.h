// SPDX-License-Identifier: Apache-2.0
// Patch consistency on Hopper, of 16-bit numbers. What it computes is told in
// patch_consistency_kernels.h.
#pragma once

#include "cuda/hopper_tiles.h"
#include "cuda/patch_consistency_kernels.h"

namespace pipa::cuda {

template <class S>
using AttendMemory = HopperMemory<S, 4>;

// As attend_kernel.
template <class S, Number kNumber>
PIPA_KERNEL(S::kThreads, 1)
hopper_attend_kernel(PIPA_GRID_CONSTANT TensorMap own, PIPA_GRID_CONSTANT TensorMap others,
                     PatchConsistency anchors, int parts, float* z, float* o) {
#if defined(PIPA_HOPPER)
  constexpr int kEights = S::kColumns / 8;
  const int live = *anchors.live, keys = *anchors.live_keys, begin = block_x() * S::kRows;
  const int part = block_y() % parts * S::kPart;
  const KeyTiles<S> tiles(anchors.first, anchors.past, begin, live, keys, block_y() / parts,
                          blocks_y() / parts);
  const int column = tiles.next(tiles.share.low), high = tiles.share.high;
  const bool any = S::lead() < live && column < high;
  auto& memory = aligned_memory<AttendMemory<S>>();
  memory.begin();
  auto next = [&](int at) { return tiles.next(at + S::kColumns); };

  if (thread() >= S::kConsumers) {
    shrink_registers<S::kCopierRegisters>();
    if (thread() == S::kConsumers && any)
      copy_all<S>(
          memory, &own, &others, column, high, 0, [](int at) { return at; }, next,
          [](int, int, Barrier*) {});
    memory.end();
    return;
  }

  grow_registers<kMultiplierRegisters>();
  const int row = 16 * warp();
  const LaneRows<1> mine(anchors.first, anchors.past, begin + row, live);
  float sum[1][S::kPart / 8][4] = {}, sums[1][2] = {};
  if (any)
    multiply_entries<S, kNumber>(sum[0], memory, part, column, high, keys, next,
                                 [&](float (&e)[1][kEights][4], int at, int) {
                                   add_exponentials<S::kByFma>(e, sums, anchors.scale,
                                                               anchors.shift, mine, tiles, at);
                                 });
  add_lanes_of_rows(sums);
  store_attended<kNumber>(sum, sums, anchors, mine, part, block_y() / parts, live, z, o);
  memory.end();
#endif
}

}  // namespace pipa::cuda
