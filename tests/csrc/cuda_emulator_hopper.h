// SPDX-License-Identifier: Apache-2.0
// What csrc/cuda/hopper.h names, on a CPU.
//
// Bulk copies spoil their target when they start and arrive at a random time. Products spoil their
// results when they start, and read shared memory and registers only when they are waited for: a
// buffer that is handed back, or an operand that is overwritten, too early shows.
#pragma once

#include <map>
#include <utility>

#define PIPA_GRID_CONSTANT const
#define PIPA_HOPPER 1

namespace pipa::cuda {

namespace emulator {

struct Map {  // in a TensorMap
  const char* x;
  int64_t n;
  int row_bytes, box_rows;
};

// In shared memory, as large as hardware's.
struct BarrierState {
  uint16_t arrivals, pending;
  int32_t bytes_and_phase;  // expected bytes, twice, and the phase's parity

  void settle() {
    if (pending != 0 || bytes_and_phase >> 1 != 0) return;
    pending = arrivals;
    bytes_and_phase ^= 1;
  }
  void expect(int bytes) { bytes_and_phase += 2 * bytes; }
};
static_assert(sizeof(BarrierState) == 8);

inline size_t offset_of(const void* shared) {
  return static_cast<const char*>(shared) - shared_memory();
}
inline size_t swizzled(size_t offset) { return offset ^ (offset >> 7 & 7) << 4; }

// Products of a thread that have started.
struct WarpgroupProduct {
  float* c;
  int columns;
  uint64_t a_matrix;
  const uint32_t* a_registers;  // of this thread, or null
  uint64_t b;
  bool add, float16;
};
struct Thread {
  std::vector<std::vector<WarpgroupProduct>> groups;  // committed, oldest first
  std::vector<WarpgroupProduct> open;
  std::map<float*, std::pair<int, std::vector<float>>> results;  // how many are to come, values
};
inline std::map<std::pair<Block*, int>, Thread>& threads() {
  static std::map<std::pair<Block*, int>, Thread> all;
  return all;
}
inline Thread& of_lane(int l) { return threads()[{block, block->current / kWarp * kWarp + l}]; }
inline Thread& own() { return of_lane(block->current % kWarp); }

inline void start(const WarpgroupProduct& product) {
  auto& [count, values] = own().results[product.c];
  if (count++ == 0) values.assign(product.c, product.c + product.columns / 2);
  std::fill(product.c, product.c + product.columns / 2, std::numeric_limits<float>::quiet_NaN());
  own().open.push_back(product);
}

inline float number(uint16_t bits, bool float16) {
  if (float16) return half_value(bits);
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}
inline float shared_number(size_t offset, bool float16) {
  uint16_t bits;
  std::memcpy(&bits, shared_memory() + swizzled(offset), 2);
  return number(bits, float16);
}
struct Matrix {
  size_t start, leading, stride;
  explicit Matrix(uint64_t bits)
      : start((bits & 0x3fff) << 4),
        leading((bits >> 16 & 0x3fff) << 4),
        stride((bits >> 32 & 0x3fff) << 4) {
    if (bits >> 62 != 1) std::abort();
  }
  size_t k_major(int row, int k) const { return start + row / 8 * stride + row % 8 * 128 + 2 * k; }
  size_t mn_major(int k, int column) const {
    return start + column / 64 * leading + k / 8 * stride + k % 8 * 128 + column % 64 * 2;
  }
};

// Lane l of the warp: its part of the results.
inline void finish(int l, const WarpgroupProduct& p, const std::vector<const uint32_t*>& a) {
  auto& [count, c] = of_lane(l).results[p.c];
  const int warp_row = block->current % 128 / kWarp * 16;
  const Matrix b(p.b);
  for (int i = 0; i < p.columns / 2; ++i) {
    const int row = l / 4 + i % 4 / 2 * 8, column = i / 4 * 8 + l % 4 * 2 + i % 2;
    double sum = p.add ? c[i] : 0;
    for (int k = 0; k < 16; ++k) {
      if (p.a_registers) {
        const uint32_t both = a[row % 8 * 4 + k % 8 / 2][k / 8 * 2 + row / 8];
        sum += static_cast<double>(
                   number(static_cast<uint16_t>(k % 2 ? both >> 16 : both), p.float16)) *
               shared_number(b.mn_major(k, column), p.float16);
      } else {
        sum += static_cast<double>(
                   shared_number(Matrix(p.a_matrix).k_major(warp_row + row, k), p.float16)) *
               shared_number(b.k_major(column, k), p.float16);
      }
    }
    c[i] = rounded_product(sum);
  }
  if (--count == 0) {
    std::copy(c.begin(), c.end(), p.c);
    of_lane(l).results.erase(p.c);
  }
}

}  // namespace emulator

struct Barrier {
  emulator::BarrierState state;
};
inline void barrier_init(Barrier* barrier, int arrivals) {
  barrier->state = {static_cast<uint16_t>(arrivals), static_cast<uint16_t>(arrivals), 0};
}
inline void barrier_init_done() {}
inline void barrier_arrive(Barrier* barrier) {
  if (barrier->state.pending-- == 0) std::abort();
  barrier->state.settle();
}
inline void barrier_arrive_expect_tx(Barrier* barrier, int bytes) {
  barrier->state.expect(bytes);
  barrier_arrive(barrier);
}
// Where in another block's memory what lies in this one's does.
template <class T>
T* there(emulator::Block& other, T* here) {
  if (other.gone()) std::abort();  // on a GPU the memory may be somebody else's by now
  return reinterpret_cast<T*>(other.memory() + emulator::offset_of(here));
}
inline void barrier_arrive_at(Barrier* barrier, int member) {
  barrier_arrive(there(emulator::cluster->blocks.at(member), barrier));
}
inline void barrier_wait(Barrier* barrier, int parity) {
  while ((barrier->state.bytes_and_phase & 1) == parity) emulator::yield();
}

namespace emulator {

// To a block's memory from `at` on.
inline void copy(const Map& map, Block& block, size_t at, Barrier* barrier, int column, int row) {
  std::memset(block.memory() + at, 0xff, map.box_rows * kChunk);
  cluster->later.push_back([=, &block] {
    if (block.gone()) std::abort();
    char* memory = block.memory();
    for (int r = 0; r < map.box_rows; ++r)
      for (int c = 0; c < kChunk / 2; ++c) {
        const bool there = row + r < map.n && 2 * (column + c) < map.row_bytes;
        uint16_t bits = 0;
        if (there)
          std::memcpy(&bits,
                      map.x + static_cast<int64_t>(row + r) * map.row_bytes + 2 * (column + c), 2);
        std::memcpy(memory + swizzled(at + r * kChunk + 2 * c), &bits, 2);
      }
    barrier->state.expect(-map.box_rows * kChunk);
    barrier->state.settle();
  });
}

}  // namespace emulator

inline void copy_box_to(int members, void* to, const TensorMap* map, Barrier* barrier, int column,
                        int row) {
  emulator::Map here;
  std::memcpy(&here, map, sizeof here);
  const size_t at = emulator::offset_of(to);
  if (at % 1024) std::abort();  // a GPU would swizzle by other rows
  for (size_t i = 0; i < emulator::cluster->blocks.size(); ++i) {
    emulator::Block& block = emulator::cluster->blocks[i];
    if (members >> i & 1) emulator::copy(here, block, at, there(block, barrier), column, row);
  }
}
inline void copy_box(void* to, const TensorMap* map, Barrier* barrier, int column, int row) {
  const auto member = emulator::block - emulator::cluster->blocks.data();
  copy_box_to(1 << member, to, map, barrier, column, row);
}
inline void copy_bytes(void* to, const void* from, Barrier* barrier, int bytes) {
  if (bytes % 16 || reinterpret_cast<uintptr_t>(to) % 16 || reinterpret_cast<uintptr_t>(from) % 16)
    std::abort();
  std::memset(to, 0xff, bytes);
  emulator::cluster->later.push_back([=] {
    std::memcpy(to, from, bytes);
    barrier->state.expect(-bytes);
    barrier->state.settle();
  });
}
inline void fence_proxy_async() {}
inline void sync_cluster() {
  emulator::meet(emulator::cluster->all, emulator::cluster->all.count, nullptr, [](auto&) {});
}
inline void sync_some(int number, int threads) {
  emulator::Meeting& meeting = emulator::block->some[number];
  if (meeting.size == 0) meeting.size = threads, meeting.brought.resize(threads);
  if (meeting.size != threads) std::abort();
  emulator::meet(meeting, meeting.count, nullptr, [](auto&) {});
}
template <int kRegisters>
void shrink_registers() {}
template <int kRegisters>
void grow_registers() {}

inline void wgmma_fence() {}
inline void commit_products() {
  auto& mine = emulator::own();
  mine.groups.push_back(std::move(mine.open));
  mine.open.clear();
}
template <int kPending>
void wait_products() {
  emulator::with_warp(nullptr, [](std::vector<void*>&) {
    while (emulator::of_lane(0).groups.size() > kPending) {
      const size_t count = emulator::of_lane(0).groups.front().size();
      for (size_t i = 0; i < count; ++i) {
        std::vector<const uint32_t*> registers;
        for (int l = 0; l < kWarp; ++l)
          registers.push_back(emulator::of_lane(l).groups.front()[i].a_registers);
        for (int l = 0; l < kWarp; ++l)
          emulator::finish(l, emulator::of_lane(l).groups.front()[i], registers);
      }
      for (int l = 0; l < kWarp; ++l)
        emulator::of_lane(l).groups.erase(emulator::of_lane(l).groups.begin());
    }
  });
}
template <int kEights>
void pin(float (&)[kEights][4]) {}

inline uint64_t matrix(const void* shared, int leading, int stride) {
  const size_t at = emulator::offset_of(shared);
  if (at % 1024 || leading % 16 || stride % 16 || at >= 1 << 18) std::abort();
  return (uint64_t{1} << 62) | static_cast<uint64_t>(stride >> 4) << 32 |
         static_cast<uint64_t>(leading >> 4) << 16 | at >> 4;
}
inline uint64_t anew(uint64_t matrix) { return matrix; }
inline uint64_t advance(uint64_t matrix, int bytes) { return matrix + (bytes >> 4); }

template <bool kFloat16, int kEights>
void multiply_shared(float (&c)[kEights][4], uint64_t a, uint64_t b, bool add) {
  emulator::start({c[0], 8 * kEights, a, nullptr, b, add, kFloat16});
}
template <bool kFloat16, int kEights>
void multiply_registers(float (&c)[kEights][4], const uint32_t (&a)[4], uint64_t b, bool add) {
  emulator::start({c[0], 8 * kEights, 0, a, b, add, kFloat16});
}

inline const char* make_map(TensorMap* map, const void* x, int64_t n, int row_bytes, int box_rows) {
  if (reinterpret_cast<uintptr_t>(x) % 16 || row_bytes % 16 || box_rows > 256) return "refused";
  const emulator::Map here{static_cast<const char*>(x), n, row_bytes, box_rows};
  std::memcpy(map, &here, sizeof here);
  return nullptr;
}

template <class... Parameters, class... Arguments>
const char* launch_clusters(void (*kernel)(Parameters...), int size, int blocks, int grid_y,
                            int threads, int shared_bytes, void*, Arguments... arguments) {
  emulator::run(size, (blocks + size - 1) / size * size, grid_y, threads, shared_bytes,
                [&] { kernel(arguments...); });
  return nullptr;
}

}  // namespace pipa::cuda
