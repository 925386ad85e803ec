// SPDX-License-Identifier: Apache-2.0
// Tiles of rows that bulk copies bring and warpgroups multiply, on Hopper.
//
// One warp copies, the other warpgroups multiply: warpgroup g owns rows 64 g … of the block's own
// rows. Results lie as in tiles.h, with one band a warp. In shared memory a tile is [chunks][rows]
// of kChunk bytes, in the layout of copy_box.
//
// Blocks of a cluster meet the same tiles in the same order. Each copies its share of a tile's rows
// to all of them, once all have handed back what was in the buffer: L2 is read once for a cluster.
#pragma once

#include "cuda/hopper.h"
#include "cuda/shapes.h"

namespace pipa::cuda {

// Registers of a thread that multiplies.
constexpr int kMultiplierRegisters = 240;

// kGroups warpgroups of 64 rows meet tiles of kColumns, which wait in kStages buffers. kPart: as in
// Shape. kByFma: of eight exponentials, those that multiply-adds compute. The unit for exponentials
// does 16 a cycle, and the tensor cores 2,048 multiply-adds: a product of rows of 128 numbers takes
// as long as its exponentials.
//
// kCluster: similarities of kRows rows take 2,048 / kRows / kCluster numbers of others from L2 in
// each of their cycles, and L2 has some 12 for a multiprocessor (5.5 TB/s by 132 of them). The
// product of entries, where there is one, adds cycles and takes nothing more.
template <int kRowBytes_, int kGroups_, int kColumns_, int kStages_, int kPart_ = 0,
          int kByFma_ = 0, int kCluster_ = 1>
struct HopperShape {
  static constexpr int kRowBytes = kRowBytes_, kRows = 64 * kGroups_, kColumns = kColumns_;
  static constexpr int kConsumers = kWarpgroup * kGroups_, kThreads = kConsumers + kWarpgroup;
  static constexpr int kWarps = kConsumers / kWarp;  // that multiply
  static constexpr int kStages = kStages_, kPart = kPart_, kByFma = kByFma_;
  static constexpr int kCluster = kCluster_, kBox = kColumns / kCluster;  // rows of a copy
  static constexpr int kChunks = kRowBytes / kChunk;
  // Of a thread at the launch: all that its bounds allow, in steps of 8. Warpgroups share out what
  // the launch took of the 65,536, and no more: who multiplies would wait forever for the rest.
  static constexpr int kLaunchRegisters = least(65536 / kThreads / 8 * 8, kMultiplierRegisters);
  // Of a thread that copies: two groups leave 3 · 168 - 2 · 240; one has what a cluster's copies
  // need.
  static constexpr int kCopierRegisters = kGroups_ == 1 ? 40 : 24;
  static_assert(kGroups_ * kMultiplierRegisters + kCopierRegisters <=
                (kGroups_ + 1) * kLaunchRegisters);
  // Whether registers hold two tiles of similarities beside the sums, and buffers a tile between.
  static constexpr bool kAhead = kPart / 2 + kColumns <= 128 && kStages >= 3;
  static constexpr int kOwnBytes = kRows * kRowBytes, kOtherBytes = kColumns * kRowBytes;
  static_assert(kPadding % kRows == 0 && kRows % kColumns == 0 && kRowBytes % kChunk == 0);
  static_assert(kCluster <= kMostCluster && kColumns % kCluster == 0 && kBox % 8 == 0);

  // This block's place in its cluster.
  PIPA_DEVICE static int member() { return block_x() % kCluster; }
  // The first row of the cluster.
  PIPA_DEVICE static int lead() { return (block_x() - member()) * kRows; }
};

// Every shape fits in the 227 KiB of shared memory that a block may have. Own rows are as many as
// in Shapes, since slots and the columns of a block's own classes depend on them.
template <int kRowBytes>
struct HopperShapes;

template <>
struct HopperShapes<128> {
  using Sum = HopperShape<128, 2, 128, 4, 0, 2>;
  using Gradient = HopperShape<128, 2, 64, 4, 64, 2>;
};
template <>
struct HopperShapes<256> {
  using Sum = HopperShape<256, 2, 128, 4, 0, 2, 2>;
  using Gradient = HopperShape<256, 2, 64, 4, 128>;
};
template <>
struct HopperShapes<512> {
  using Sum = HopperShape<512, 2, 128, 2, 0, 0, 2>;
  using Gradient = HopperShape<512, 2, 64, 3, 256>;
};
template <>
struct HopperShapes<1024> {
  using Sum = HopperShape<1024, 1, 64, 2, 0, 0, 2>;
  using Gradient = HopperShape<1024, 1, 64, 2, 256, 0, 2>;
};

// Which buffer is next, and whether it has been used an odd number of times.
template <int kStages>
struct Turn {
  int stage = 0, parity = 0;
  PIPA_DEVICE Turn after() const {
    return stage + 1 < kStages ? Turn{stage + 1, parity} : Turn{0, parity ^ 1};
  }
};

// A block's shared memory. Tiles are at its start, for their alignment.
template <class S, int kFloats>  // numbers beside the tiles
struct HopperMemory {
  char own[S::kOwnBytes];
  char others[S::kStages][S::kOtherBytes];
  float numbers[kFloats];
  Barrier own_here, full[S::kStages], empty[S::kStages];

  // By all threads, first and last. A block waits for its cluster's others, which write here.
  PIPA_DEVICE void begin() {
    if (thread() == 0) {
      barrier_init(&own_here, 1);
      for (int i = 0; i < S::kStages; ++i) {
        barrier_init(&full[i], 1);
        barrier_init(&empty[i], S::kWarps * S::kCluster);
      }
      barrier_init_done();
    }
    if constexpr (S::kCluster > 1)
      sync_cluster();
    else
      sync_threads();
  }
  PIPA_DEVICE void end() {
    if constexpr (S::kCluster > 1) sync_cluster();
  }
  // The buffer may be filled again. By all threads of a warp that multiplies.
  PIPA_DEVICE void hand_back(int stage) {
    if constexpr (S::kCluster > 1) {
      if (lane() < S::kCluster) barrier_arrive_at(&empty[stage], lane());
    } else {
      if (lane() == 0) barrier_arrive(&empty[stage]);
    }
  }
};

// The memory of S that a block has. Its size is larger by what alignment may take.
template <class Memory>
PIPA_DEVICE Memory& aligned_memory() {
  char* base = shared_memory();
  return *reinterpret_cast<Memory*>(base + (-reinterpret_cast<uintptr_t>(base) & 1023));
}
template <class Memory>
constexpr int memory_bytes() {
  return static_cast<int>(sizeof(Memory)) + 1024;
}

// Rows `row` … of a matrix to a tile of kRows, which all blocks of a cluster make of their shares,
// or, of kRows rows of its own, this block.
template <class S, int kRows, bool kOfAll>
PIPA_DEVICE void copy_tile(char* to, const TensorMap* map, Barrier* barrier, int row) {
  for (int c = 0; c < S::kChunks; ++c) {
    char* chunk = to + c * kRows * kChunk;
    const int column = c * (kChunk / 2);
    if constexpr (kOfAll && S::kCluster > 1) {
      const int from = S::member() * S::kBox;
      copy_box_to((1 << S::kCluster) - 1, chunk + from * kChunk, map, barrier, column, row + from);
    } else {
      for (int r = 0; r < kRows; r += S::kBox)
        copy_box(chunk + r * kChunk, map, barrier, column, row + r);
    }
  }
}

// By one thread: the block's own rows, and then all tiles at, next(at), … below `high`, each as
// soon as there is a buffer: rows from column_of(at) on. beside(at, stage, barrier) starts what
// else comes with a tile, of so many bytes.
template <class S, class Memory, class Column, class Next, class Beside>
PIPA_DEVICE void copy_all(Memory& memory, const TensorMap* own, const TensorMap* others, int at,
                          int high, int beside_bytes, const Column& column_of, const Next& next,
                          const Beside& beside) {
  barrier_arrive_expecting(&memory.own_here, S::kOwnBytes);
  copy_tile<S, S::kRows, false>(memory.own, own, &memory.own_here, block_x() * S::kRows);
  for (Turn<S::kStages> turn; at < high; at = next(at), turn = turn.after()) {
    Barrier* full = &memory.full[turn.stage];
    barrier_wait(&memory.empty[turn.stage], turn.parity ^ 1);
    barrier_arrive_expecting(full, S::kOtherBytes + beside_bytes);
    copy_tile<S, S::kColumns, true>(memory.others[turn.stage], others, full, column_of(at));
    beside(at, turn.stage, full);
  }
}

// Starts s = own rows of this warpgroup · other transposed.
template <class S, bool kFloat16>
PIPA_DEVICE void start_similarities(float (&s)[S::kColumns / 8][4], const char* own,
                                    const char* other) {
  const int group = thread() / kWarpgroup;
  const uint64_t a = anew(matrix(own + group * 64 * kChunk, 0, 8 * kChunk));
  const uint64_t b = matrix(other, 0, 8 * kChunk);
  pin(s);
  begin_products();
  PIPA_UNROLL
  for (int c = 0; c < S::kChunks; ++c) PIPA_UNROLL
  for (int k = 0; k < kChunk / 32; ++k)
    multiply_shared<kFloat16>(s, advance(a, c * S::kRows * kChunk + 32 * k),
                              advance(b, c * S::kColumns * kChunk + 32 * k), c + k > 0);
  commit_products();
}

// Starts sum += g · other [its rows, kPart columns from `column` on, a multiple of 64].
template <class S, bool kFloat16>
PIPA_DEVICE void start_product(float (&sum)[S::kPart / 8][4],
                               const uint32_t (&g)[S::kColumns / 16][4], const char* other,
                               int column) {
  const uint64_t b =
      matrix(other + column / 64 * S::kColumns * kChunk, S::kColumns * kChunk, 8 * kChunk);
  pin(sum);
  begin_products();
  PIPA_UNROLL
  for (int k = 0; k < S::kColumns / 16; ++k)
    multiply_registers<kFloat16>(sum, g[k], advance(b, 16 * k * kChunk), true);
  commit_products();
}

// Results of a product as the next one's left operand wants them.
template <Number kNumber, int kEights>
PIPA_DEVICE void pack_entries(uint32_t (&to)[kEights / 2][4], const float (&g)[kEights][4]) {
  PIPA_UNROLL
  for (int k = 0; k < kEights / 2; ++k) PIPA_UNROLL
  for (int i = 0; i < 4; ++i) {
    const float* pair = &g[2 * k + i / 2][2 * (i % 2)];
    to[k][i] = pack<kNumber>(pair[0], pair[1]);
  }
}

// Zeros in rows `from` … of a tile: what takes no part may be NaN, which a zero weight would not
// keep out. By all threads that multiply.
template <class S>
PIPA_DEVICE void clear_rows(char* tile, int from) {
  constexpr int kPieces = kChunk / 16;  // their order does not matter
  for (int i = thread(); i < S::kOtherBytes / 16; i += S::kConsumers)
    if (i / kPieces % S::kColumns >= from) {
      auto* piece = reinterpret_cast<uint32_t*>(tile + 16 * i);
      piece[0] = piece[1] = piece[2] = piece[3] = 0;
    }
  publish_shared();
  sync_some(1, S::kConsumers);
}

// add(similarities, at) for all tiles at, next(at), … below `high`: while the next tile's products
// run.
template <class S, Number kNumber, class Memory, class Next, class Add>
PIPA_DEVICE void add_similarities(Memory& memory, int at, int high, const Next& next,
                                  const Add& add) {
  float s0[1][S::kColumns / 8][4], s1[1][S::kColumns / 8][4];
  Turn<S::kStages> turn;
  auto start = [&](auto& s, const Turn<S::kStages>& whose) {
    barrier_wait(&memory.full[whose.stage], whose.parity);
    start_similarities<S, kNumber == Number::float16>(s[0], memory.own, memory.others[whose.stage]);
  };
  auto take = [&](auto& s) {
    pin(s[0]);
    memory.hand_back(turn.stage);
    add(s, at);
  };
  // False at the last tile.
  auto step = [&](auto& now, auto& then) {
    const int following = next(at);
    if (following >= high) {
      wait_products<0>();
      take(now);
      return false;
    }
    start(then, turn.after());
    wait_products<1>();
    take(now);
    at = following, turn = turn.after();
    return true;
  };
  barrier_wait(&memory.own_here, 0);
  start(s0, turn);
  while (step(s0, s1) && step(s1, s0)) {
  }
}

// sum += entries · other over all tiles column, next(column), … below `high`.
// entries(s, column, stage) makes entries of similarities. Rows from `there` on are taken for
// zeros. With S::kAhead, it runs while the next tile's similarities and the last one's product do;
// without, which leaves registers for wider sums, while those of the other warpgroup do, if there
// is one.
template <class S, Number kNumber, class Memory, class Next, class Entries>
PIPA_DEVICE void multiply_entries(float (&sum)[S::kPart / 8][4], Memory& memory, int part,
                                  int column, int high, int there, const Next& next,
                                  const Entries& entries) {
  constexpr bool kFloat16 = kNumber == Number::float16;
  constexpr int kEights = S::kColumns / 8;
  uint32_t g[S::kColumns / 16][4];
  Turn<S::kStages> turn;

  barrier_wait(&memory.own_here, 0);
  auto start = [&](float (&s)[kEights][4], int at, const Turn<S::kStages>& whose) {
    barrier_wait(&memory.full[whose.stage], whose.parity);
    char* other = memory.others[whose.stage];
    if (at + S::kColumns > there) clear_rows<S>(other, there - at);
    start_similarities<S, kFloat16>(s, memory.own, other);
  };
  auto start_sum = [&](float (&s)[kEights][4]) {
    pack_entries<kNumber>(g, s);
    start_product<S, kFloat16>(sum, g, memory.others[turn.stage], part);
  };
  float s0[1][kEights][4];
  start(s0[0], column, turn);
  wait_products<0>();
  pin(s0[0]);
  if constexpr (S::kAhead) {
    float s1[1][kEights][4];
    int last = -1;  // stage that the product under way reads
    // False at the last tile.
    auto step = [&](auto& now, auto& then) {
      const int following = next(column);
      if (following >= high) {
        entries(now, column, turn.stage);
        wait_products<0>();
        start_sum(now[0]);
        return false;
      }
      start(then[0], following, turn.after());
      entries(now, column, turn.stage);
      wait_products<1>();  // all but the similarities
      if (last >= 0) memory.hand_back(last);
      start_sum(now[0]);
      wait_products<1>();  // all but the product
      pin(then[0]);
      last = turn.stage;
      column = following, turn = turn.after();
      return true;
    };
    while (step(s0, s1) && step(s1, s0)) {
    }
  } else {
    for (;;) {
      entries(s0, column, turn.stage);
      start_sum(s0[0]);
      const int following = next(column);
      if (following >= high) break;
      start(s0[0], following, turn.after());
      wait_products<0>();
      pin(s0[0]);
      memory.hand_back(turn.stage);
      column = following, turn = turn.after();
    }
  }
  wait_products<0>();
  pin(sum);
}

}  // namespace pipa::cuda
