// SPDX-License-Identifier: Apache-2.0
// What the form `all` asks of positives: the sum of their cosines, x_i·(the sum of its class -
// x_i), which needs no product of rows with rows.
#include "cuda/pixel_contrast_launch.h"

namespace pipa::cuda {

namespace {

constexpr int kThreads = 128, kTile = kPadding;  // rows that one program has, and one sum

template <Number kNumber>
PIPA_DEVICE float number_at(const void* x, int64_t index) {
  if constexpr (!kHalf<kNumber>) return static_cast<const float*>(x)[index];
  const uint16_t bits = static_cast<const uint16_t*>(x)[index];
  return kNumber == Number::bfloat16 ? float_of(static_cast<uint32_t>(bits) << 16)
                                     : unpack_f16(bits);
}

// Column d of the sum of keys `range`, one after another.
template <Number kNumber>
PIPA_DEVICE float sum_of_keys(const PixelContrast& rows, Range range, int columns, int d) {
  float sum = 0;
  for (int64_t k = range.low; k < range.high; ++k)
    sum += number_at<kNumber>(rows.keys, k * columns + d);
  return sum;
}

// Program t sums the t-th kTile keys.
template <Number kNumber>
PIPA_KERNEL(kThreads, 1)
sum_tiles_kernel(PixelContrast rows,
                 float* sums) {  // [tiles, columns]
  const int columns = rows.row_bytes / kBytes<kNumber>, begin = block_x() * kTile;
  const Range range = {begin, least(begin + kTile, *rows.live_keys)};
  for (int d = thread(); d < columns; d += kThreads)
    sums[int64_t{block_x()} * columns + d] = sum_of_keys<kNumber>(rows, range, columns, d);
}

// Column d of the sum of a class's keys: of whole tiles, and of what is loose on both sides.
template <Number kNumber>
PIPA_DEVICE float sum_of_class(const PixelContrast& rows, const float* tile_sums, Range range,
                               int columns, int d) {
  const Range tiles = {blocks_of(range.low, kTile), range.high / kTile};
  if (tiles.low >= tiles.high) return sum_of_keys<kNumber>(rows, range, columns, d);
  float sum = sum_of_keys<kNumber>(rows, {range.low, tiles.low * kTile}, columns, d);
  for (int64_t t = tiles.low; t < tiles.high; ++t) sum += tile_sums[t * columns + d];
  return sum + sum_of_keys<kNumber>(rows, {tiles.high * kTile, range.high}, columns, d);
}

// Program I has the I-th kTile rows, class after class.
template <Number kNumber>
PIPA_KERNEL(kThreads, 1)
cosines_kernel(PixelContrast rows, const float* tile_sums, float* out) {
  const int columns = rows.row_bytes / kBytes<kNumber>, begin = block_x() * kTile;
  const int past = least(begin + kTile, *rows.live);
  float* of_class = reinterpret_cast<float*>(shared_memory());  // [columns]
  for (int at = begin, end; at < past; at = end) {
    const Range range = {rows.first[at], rows.past[at]};
    for (end = at + 1; end < past && rows.first[end] == range.low && rows.past[end] == range.high;)
      ++end;
    for (int d = thread(); d < columns; d += kThreads)
      of_class[d] = sum_of_class<kNumber>(rows, tile_sums, range, columns, d);
    sync_threads();
    for (int64_t i = at + warp(); i < end; i += kThreads / kWarp) {
      float cosines = 0;
      for (int d = lane(); d < columns; d += kWarp) {
        const float x = number_at<kNumber>(rows.x, i * columns + d);
        cosines += x * (of_class[d] - (rows.itself ? x : 0.0f));
      }
      PIPA_UNROLL
      for (int bit = 1; bit < kWarp; bit *= 2) cosines += shuffle_xor(cosines, bit);
      if (lane() == 0) out[i] = cosines;
    }
    sync_threads();  // the next class may overwrite this one's sum
  }
}

}  // namespace

const char* pixel_contrast_cosines(const PixelContrast& p, float* tile_sums, float* sums,
                                   void* stream) {
  return with_number(p.number, [&](auto number) {
    constexpr Number kNumber = decltype(number)::value;
    if (const char* wrong = launch(sum_tiles_kernel<kNumber>, blocks_of(p.m, kTile), 1, kThreads, 0,
                                   stream, p, tile_sums))
      return wrong;
    return launch(cosines_kernel<kNumber>, blocks_of(p.n, kTile), 1, kThreads, 4 * 512, stream, p,
                  tile_sums, sums);
  });
}

}  // namespace pipa::cuda
