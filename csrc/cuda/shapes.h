// SPDX-License-Identifier: Apache-2.0
// How kernels cut their problems, and which rows and columns are whose.
#pragma once

#include <type_traits>

#include "cuda/tiles.h"

namespace pipa::cuda {

// The class range and number of the two rows that a lane has of each band.
template <int kBands>
struct LaneRows {
  int row[kBands][2], first[kBands][2], past[kBands][2];

  PIPA_DEVICE LaneRows(const int* first_of,  // of all rows: where the row's class begins
                       const int* past_of,   // and ends
                       int begin,            // the warp's first row
                       int live) {           // rows from here on have no class
    PIPA_UNROLL
    for (int m = 0; m < kBands; ++m) PIPA_UNROLL
    for (int h = 0; h < 2; ++h) {
      const int i = begin + fragment_row(lane(), m, h);
      row[m][h] = i;
      first[m][h] = i < live ? first_of[i] : 0;
      past[m][h] = i < live ? past_of[i] : 0;
    }
  }
  PIPA_DEVICE bool same(int m, int h, int column) const {
    return Range{first[m][h], past[m][h]}.holds(column);
  }
};

// How a kernel cuts its problem: blocks of kRows rows meet tiles of kColumns.
template <int kRowBytes_, int kRows_, int kColumns_, int kWarps_, int kPart_ = 0, int kBlocks_ = 1>
struct Shape {
  static constexpr int kRowBytes = kRowBytes_, kRows = kRows_, kColumns = kColumns_;
  static constexpr int kWarps = kWarps_, kThreads = kWarps * kWarp;
  static constexpr int kBands = kRows / 16 / kWarps;
  static constexpr int kPart = kPart_;  // columns of the gradient that a program makes
  // Blocks that a multiprocessor must hold, where the compiler would take a few registers too many.
  // tf32x3, which keeps twice the operands, would spill them.
  static constexpr int blocks(Number number) { return number == Number::tf32x3 ? 1 : kBlocks_; }
  static constexpr int kCluster = 1;  // blocks that meet tiles together
  static constexpr int kOwnBytes = kRows * kRowBytes, kOtherBytes = kColumns * kRowBytes;
  static_assert(kBands * 16 * kWarps == kRows && kPadding % kRows == 0 && kRows % kColumns == 0);
};

// What kernels are compiled for, by the width of rows. `Sum` is for kernels that keep two numbers a
// row, `Gradient` for those that keep a row of kPart floats. Every shape fits in the 99 KiB of
// shared memory that the smallest chips have.
template <int kRowBytes>
struct Shapes;  // of rows of at most so many bytes

template <>
struct Shapes<128> {
  using Sum = Shape<128, 128, 64, 4, 0, 3>;
  template <int kBytes>
  using Gradient = Shape<128, 128, kBytes == 2 ? 64 : 32, 4, 128 / kBytes, kBytes == 2 ? 1 : 3>;
};
template <>
struct Shapes<256> {
  using Sum = Shape<256, 128, 64, 4>;
  template <int kBytes>
  using Gradient = Shape<256, 128, 32, 4, 256 / kBytes>;
};
template <>
struct Shapes<512> {
  using Sum = Shape<512, 128, 32, 4>;
  template <int kBytes>
  using Gradient =
      std::conditional_t<kBytes == 2, Shape<512, 64, 32, 4, 256>, Shape<512, 64, 16, 4, 128, 3>>;
};
template <>
struct Shapes<1024> {
  using Sum = Shape<1024, 64, 16, 4>;
  template <int kBytes>
  using Gradient = Shape<1024, 64, 16, 4, kBytes == 2 ? 256 : 64>;
};
template <>
struct Shapes<2048> {
  using Sum = Shape<2048, 16, 16, 1>;
  template <int kBytes>
  using Gradient = Shape<2048, 16, 16, 1, 128>;
};

// Rows of 512 columns, the most there are, have 1024 bytes unless they are float32.
template <int kRowBytes, Number kNumber>
constexpr bool kOccurs = kRowBytes <= 512 * kBytes<kNumber>;

inline const char* const kTooWide = "rows have more than 512 columns";

// The least of the widths that holds rows of so many bytes.
template <int kIndex = 0, class Call>
auto with_width(int row_bytes, const Call& call) {
  if constexpr (kIndex + 1 < sizeof(kWidths) / sizeof(int))
    if (row_bytes > kWidths[kIndex]) return with_width<kIndex + 1>(row_bytes, call);
  return call(std::integral_constant<int, kWidths[kIndex]>{});
}

template <class Call>
auto with_number(Number number, const Call& call) {
  if (number == Number::bfloat16) return call(std::integral_constant<Number, Number::bfloat16>{});
  if (number == Number::float16) return call(std::integral_constant<Number, Number::float16>{});
  if (number == Number::tf32) return call(std::integral_constant<Number, Number::tf32>{});
  return call(std::integral_constant<Number, Number::tf32x3>{});
}

// Calls the launches for rows of so many bytes, of such numbers.
template <template <int, Number> class Launches, class Call>
const char* with_launches(int row_bytes, Number number, const Call& call) {
  return with_width(row_bytes, [&](auto width) {
    return with_number(number, [&](auto of) -> const char* {
      constexpr int kWidth = decltype(width)::value;
      constexpr Number kNumber = decltype(of)::value;
      if constexpr (kOccurs<kWidth, kNumber>)
        return call(Launches<kWidth, kNumber>{});
      else
        return kTooWide;
    });
  });
}

}  // namespace pipa::cuda
