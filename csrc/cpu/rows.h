// SPDX-License-Identifier: Apache-2.0
// Rows of features as torch holds them, and their order by class.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace pipa {

enum class Dtype { float32, bfloat16, float16 };

// A contiguous [rows, columns] matrix of the caller's.
struct Matrix {
  const void* data;
  int64_t rows;
  int64_t columns;
  Dtype dtype;
};

// A row that holds inf or nan comes as nan throughout: the kernels' exponential, which is clamped,
// would hide an infinite cosine. values: [columns]
void load_row(const Matrix& matrix, int64_t row, float* values);
void store_row(void* data,  // [rows, columns] of dtype
               Dtype dtype, int64_t columns, int64_t row,
               const float* values);  // [columns], rounded to nearest even

struct ClassOrder {
  std::vector<int32_t> rows;    // [L] rows that take part, by ascending label, stable
  std::vector<int32_t> start;   // [C + 1] where each class begins in rows
  std::vector<int64_t> labels;  // [C] ascending
  int classes() const { return static_cast<int>(labels.size()); }
};

// Orders the rows for which keep(row) holds by label, in linear time for labels of a small range.
template <class Keep>
ClassOrder order_by_class(const int64_t* labels,  // [n]
                          int64_t n, const Keep& keep);

// Which of the classes has a label; -1 where none has: it differs from all.
int32_t class_of(const ClassOrder& order, int64_t label);

ClassOrder sort_by_class(std::vector<int32_t> rows,  // [L] rows that take part
                         const int64_t* labels);     // [n]

template <class Keep>
ClassOrder order_by_class(const int64_t* labels, int64_t n, const Keep& keep) {
  std::vector<int32_t> rows;
  rows.reserve(n);
  for (int64_t i = 0; i < n; ++i)
    if (keep(i)) rows.push_back(static_cast<int32_t>(i));
  return sort_by_class(std::move(rows), labels);
}

// Hands out aligned pieces of one buffer. Without a buffer it only counts, so that a workspace's
// size and its layout are one piece of code.
class Arena {
 public:
  explicit Arena(void* base) : base_(reinterpret_cast<uintptr_t>(base)) {}

  template <class T>
  T* take(int64_t count) {
    const uintptr_t end = used_;  // of the piece before
    used_ = (base_ + end + kGap + kAlign - 1) / kAlign * kAlign - base_;
    T* piece = base_ ? reinterpret_cast<T*>(base_ + used_) : nullptr;
#if defined(__SANITIZE_ADDRESS__)
    if (base_) __asan_poison_memory_region(reinterpret_cast<void*>(base_ + end), used_ - end);
#endif
    used_ += count * sizeof(T);
    return piece;
  }

  // Floats that hold all pieces wherever a buffer of floats starts.
  int64_t floats() const {
    return static_cast<int64_t>((used_ + kAlign - sizeof(float) + 3) / sizeof(float));
  }

 private:
  static constexpr uintptr_t kAlign = 64;
#if defined(__SANITIZE_ADDRESS__)
  // One allocation holds all pieces, so only a gap shows that one runs into the next. It stays
  // poisoned until the buffer is freed: a buffer serves one call.
  static constexpr uintptr_t kGap = 64;
#else
  static constexpr uintptr_t kGap = 0;
#endif

  uintptr_t base_;
  uintptr_t used_ = 0;  // bytes
};

}  // namespace pipa
