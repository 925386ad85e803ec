// SPDX-License-Identifier: Apache-2.0
// What csrc/cuda/device.h names, on a CPU: the kernels' own source runs where there is no GPU.
//
// Each thread of a block is a fiber. Whoever meets a barrier, or an instruction of a whole warp,
// lets another go on, chosen at random: an order that no test relies on, so that a missing barrier
// shows. Copies spoil their target when they start and arrive when they are waited for, not before,
// and shared memory begins as NaN.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <random>
#include <vector>

#define PIPA_DEVICE inline
#define PIPA_UNROLL
#define PIPA_KERNEL(threads, blocks) inline void

namespace pipa::cuda {

constexpr int kWarp = 32;

namespace emulator {

struct Copy {
  void* to;
  const void* from;
  bool valid;
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  bool done = false;
  std::vector<std::vector<Copy>> groups;  // committed, oldest first
  std::vector<Copy> open;
};

// Threads that must all arrive before any goes on.
struct Meeting {
  int size = 0, count = 0;
  long phase = 0;
  std::vector<void*> brought;
};

struct Block {
  int x = 0, y = 0, grid_y = 1;
  std::vector<Fiber> fibers;
  std::vector<Meeting> warps;
  Meeting all;
  std::map<int, Meeting> some;  // of some warps, by a number
  std::vector<char> shared;
  int current = 0;

  bool gone() const {
    return std::all_of(fibers.begin(), fibers.end(), [](const Fiber& f) { return f.done; });
  }
  char* memory() {
    char* base = shared.data();
    return base + (-reinterpret_cast<uintptr_t>(base) & 1023);
  }
};

// Blocks that run at once.
struct Cluster {
  std::vector<Block> blocks;
  Meeting all;
  std::vector<std::function<void()>> later;  // what happens at a random time
  ucontext_t scheduler;
};

inline Cluster* cluster = nullptr;
inline Block* block = nullptr;  // of the cluster, the one whose thread runs
inline bool hopper = false;     // what the device is taken for

inline void yield() {
  Fiber& fiber = block->fibers[block->current];
  swapcontext(&fiber.context, &cluster->scheduler);
}

// The last to arrive calls `act` on what all brought.
template <class Act>
void meet(Meeting& meeting, int index, void* mine, const Act& act) {
  meeting.brought[index] = mine;
  if (++meeting.count == meeting.size) {
    act(meeting.brought);
    meeting.count = 0;
    ++meeting.phase;
    return;
  }
  for (const long phase = meeting.phase; meeting.phase == phase;) yield();
}

template <class Act>
void with_warp(void* mine, const Act& act) {
  meet(block->warps[block->current / kWarp], block->current % kWarp, mine, act);
}

inline std::function<void()>* body = nullptr;
inline void enter() {
  (*body)();
  Fiber& fiber = block->fibers[block->current];
  if (!fiber.open.empty() || !fiber.groups.empty()) std::abort();  // they would write to the next's
  fiber.done = true;
  yield();
}

inline void begin(Block& here, int threads, int shared_bytes) {
  constexpr size_t kStack = 1 << 18;
  here.fibers.resize(threads);
  here.warps.resize((threads + kWarp - 1) / kWarp);
  for (auto& warp : here.warps) warp.size = kWarp, warp.brought.resize(kWarp);
  here.all.size = threads, here.all.brought.resize(threads);
  here.shared.assign(shared_bytes + 1024, 0);
  for (int i = 0; i + 4 <= shared_bytes + 1024; i += 4)
    reinterpret_cast<float&>(here.shared[i]) = std::numeric_limits<float>::quiet_NaN();
  for (Fiber& fiber : here.fibers) {
    fiber.stack.reset(new char[kStack]);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
  }
}

// Runs a kernel's clusters of `size` blocks along x one after another.
inline void run(int size, int grid_x, int grid_y, int threads, int shared_bytes,
                std::function<void()> kernel) {
  static std::mt19937 random(7);
  body = &kernel;
  for (int y = 0; y < grid_y; ++y)
    for (int x = 0; x < grid_x; x += size) {
      Cluster here;
      cluster = &here;
      here.blocks.resize(size);
      here.all.size = size * threads, here.all.brought.resize(here.all.size);
      std::vector<int> alive;  // threads, numbered through all blocks
      for (int i = 0; i < size; ++i) {
        here.blocks[i].x = x + i, here.blocks[i].y = y, here.blocks[i].grid_y = grid_y;
        begin(here.blocks[i], threads, shared_bytes);
        for (int j = 0; j < threads; ++j) alive.push_back(i * threads + j);
      }
      while (!alive.empty()) {
        if (!here.later.empty() && random() % 4 == 0) {
          const auto event = here.later.begin() + random() % here.later.size();
          const auto happen = std::move(*event);
          here.later.erase(event);
          happen();
        }
        // one warp's threads in turn, warps at random: what a GPU's schedulers may do
        const int first = alive[random() % alive.size()] / kWarp * kWarp;
        std::vector<int> left;
        for (int i : alive) {
          block = &here.blocks[i / threads];
          if (i / kWarp * kWarp == first) {
            block->current = i % threads;
            swapcontext(&here.scheduler, &block->fibers[block->current].context);
          }
          if (!block->fibers[i % threads].done) left.push_back(i);
        }
        alive.swap(left);
      }
    }
  cluster = nullptr, block = nullptr;
}

// What a GPU makes of a product's sum: of every NaN the same one.
inline float rounded_product(double sum) {
  const uint32_t nan = 0x7fffffff;
  float value = static_cast<float>(sum);
  if (std::isnan(value)) std::memcpy(&value, &nan, 4);
  return value;
}

inline float half_value(uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const float sign = bits & 0x8000 ? -1.0f : 1.0f;
  if (exponent == 31) return mantissa ? NAN : sign * INFINITY;
  return sign * (exponent ? std::ldexp(1024.0f + mantissa, exponent - 25)
                          : std::ldexp(static_cast<float>(mantissa), -24));
}

inline uint16_t half_bits(float value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const float size = std::fabs(value);
  if (std::isnan(value)) return 0x7e00;
  if (size >= 65520.0f) return sign | 0x7c00;
  int exponent;
  std::frexp(size, &exponent);  // size = f 2^exponent, f in [0.5, 1)
  exponent = std::max(exponent, -13);
  const float scaled = std::nearbyint(std::ldexp(size, 11 - exponent));  // to even
  int mantissa = static_cast<int>(scaled);
  if (mantissa == 2048) mantissa = 1024, ++exponent;
  if (mantissa < 1024) return sign | static_cast<uint16_t>(mantissa);
  return sign | static_cast<uint16_t>((exponent + 14) << 10 | (mantissa - 1024));
}

}  // namespace emulator

inline int thread() { return emulator::block->current; }
inline int lane() { return thread() % kWarp; }
inline int warp() { return thread() / kWarp; }
inline int block_x() { return emulator::block->x; }
inline int block_y() { return emulator::block->y; }
inline int blocks_y() { return emulator::block->grid_y; }
inline char* shared_memory() { return emulator::block->memory(); }
inline void sync_threads() {
  emulator::meet(emulator::block->all, thread(), nullptr, [](auto&) {});
}

inline float shuffle_xor(float value, int mask) {
  float pair[2] = {value, 0};
  emulator::with_warp(pair, [mask](std::vector<void*>& all) {
    for (int l = 0; l < kWarp; ++l)
      static_cast<float*>(all[l])[1] = static_cast<float*>(all[l ^ mask])[0];
  });
  return pair[1];
}

inline void copy_async(void* to, const void* from, bool valid) {
  std::memset(to, 0xff, 16);  // NaN: from now on it may be overwritten at any time
  emulator::block->fibers[thread()].open.push_back({to, from, valid});
}
inline void commit_copies() {
  auto& fiber = emulator::block->fibers[thread()];
  fiber.groups.push_back(std::move(fiber.open));
  fiber.open.clear();
}
template <int kPending>
void wait_copies() {
  auto& groups = emulator::block->fibers[thread()].groups;
  while (groups.size() > kPending) {
    for (const emulator::Copy& copy : groups.front()) {
      if (reinterpret_cast<uintptr_t>(copy.to) % 16 ||
          (copy.valid && reinterpret_cast<uintptr_t>(copy.from) % 16))
        std::abort();  // as a GPU would
      if (copy.valid)
        std::memcpy(copy.to, copy.from, 16);
      else
        std::memset(copy.to, 0, 16);
    }
    groups.erase(groups.begin());
  }
}

inline void load_matrices(uint32_t (&to)[4], const void* row) {
  struct Lane {
    const char* row;
    uint32_t* to;
  } mine{static_cast<const char*>(row), to};
  if (reinterpret_cast<uintptr_t>(row) % 16) std::abort();
  emulator::with_warp(&mine, [](std::vector<void*>& all) {
    for (int l = 0; l < kWarp; ++l)
      for (int m = 0; m < 4; ++m)
        std::memcpy(&static_cast<Lane*>(all[l])->to[m],
                    static_cast<Lane*>(all[8 * m + l / 4])->row + 4 * (l % 4), 4);
  });
}
inline void load_transposed(uint32_t (&to)[4], const void* row) {
  struct Lane {
    const char* row;
    uint32_t* to;
  } mine{static_cast<const char*>(row), to};
  if (reinterpret_cast<uintptr_t>(row) % 16) std::abort();
  emulator::with_warp(&mine, [](std::vector<void*>& all) {
    for (int l = 0; l < kWarp; ++l)
      for (int m = 0; m < 4; ++m) {
        uint16_t pair[2];
        for (int i = 0; i < 2; ++i)
          std::memcpy(&pair[i], static_cast<Lane*>(all[8 * m + 2 * (l % 4) + i])->row + 2 * (l / 4),
                      2);
        static_cast<Lane*>(all[l])->to[m] = pair[0] | static_cast<uint32_t>(pair[1]) << 16;
      }
  });
}

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}
inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline uint32_t round_tf32(float value) {
  return std::isnan(value) ? 0x7fffffff : (bits_of(value) + 0x1000u) & ~0x1fffu;
}

namespace emulator {

// Off by at most so many units in the last place, as the PTX ISA allows, the same each time; what
// is subnormal becomes 0.
inline float inexact(float value, int most) {
  if (!std::isfinite(value)) return value;
  if (std::fabs(value) < std::numeric_limits<float>::min()) return 0;
  const uint32_t bits = bits_of(value);
  if ((bits & 0x7fffff) == 0) return value;  // powers of two
  const int off = static_cast<int>(bits * 2654435761u >> 16) % (2 * most + 1) - most;
  return float_of(bits + off);
}

struct Product {
  float* c;
  const uint32_t* a;
  uint32_t b[2];
};

// depth numbers of `bytes` bytes each; value(register, place in it)
template <class Value>
void multiply(Product& mine, int depth, const Value& value) {
  with_warp(&mine, [&](std::vector<void*>& all) {
    const int per = depth / 8;  // numbers in a register
    auto lane_of = [&](int l) { return static_cast<Product*>(all[l]); };
    for (int row = 0; row < 16; ++row)
      for (int column = 0; column < 8; ++column) {
        float& c = lane_of(row % 8 * 4 + column / 2)->c[row / 8 * 2 + column % 2];
        double sum = c;
        for (int k = 0; k < depth; ++k) {
          const int half = k / (depth / 2), in_half = k % (depth / 2);
          const Product* pa = lane_of(row % 8 * 4 + in_half / per);
          const Product* pb = lane_of(column * 4 + in_half / per);
          sum += static_cast<double>(value(pa->a[2 * half + row / 8], in_half % per)) *
                 value(pb->b[half], in_half % per);
        }
        c = rounded_product(sum);
      }
  });
}

}  // namespace emulator

inline void multiply_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulator::Product mine{c, a, {b0, b1}};
  emulator::multiply(mine, 16, [](uint32_t bits, int place) {
    return float_of(place ? bits & 0xffff0000u : bits << 16);
  });
}
inline void multiply_f16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulator::Product mine{c, a, {b0, b1}};
  emulator::multiply(mine, 16, [](uint32_t bits, int place) {
    return emulator::half_value(static_cast<uint16_t>(place ? bits >> 16 : bits));
  });
}
inline void multiply_tf32(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulator::Product mine{c, a, {b0, b1}};
  emulator::multiply(mine, 8, [](uint32_t bits, int) { return float_of(bits & ~0x1fffu); });
}

inline uint32_t pack_bf16(float low, float high) {
  auto round = [](float value) -> uint32_t {
    const uint32_t bits = bits_of(value);
    if (std::isnan(value)) return 0x7fff;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  };
  return round(low) | round(high) << 16;
}
inline uint32_t pack_f16(float low, float high) {
  return emulator::half_bits(low) | static_cast<uint32_t>(emulator::half_bits(high)) << 16;
}
inline float unpack_f16(uint16_t bits) { return emulator::half_value(bits); }

template <class... Parameters, class... Arguments>
const char* launch(void (*kernel)(Parameters...), int grid_x, int grid_y, int threads,
                   int shared_bytes, void*, Arguments... arguments) {
  emulator::run(1, grid_x, grid_y, threads, shared_bytes, [&] { kernel(arguments...); });
  return nullptr;
}

inline void keep_loads_apart() {}
inline float exp2_fast(float x) { return emulator::inexact(std::exp2(x), 2); }
inline float log2_exact(float x) { return std::log2(x); }
inline float reciprocal(float x) { return emulator::inexact(1 / x, 1); }

}  // namespace pipa::cuda
