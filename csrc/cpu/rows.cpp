// SPDX-License-Identifier: Apache-2.0
#include "cpu/rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

namespace pipa {
namespace {

constexpr uint32_t kInfinity = 0x7f800000u, kNan = 0x7fc00000u;

float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

uint32_t to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

float from_half(uint16_t half) {
  const uint32_t sign = (half & 0x8000u) << 16, magnitude = half & 0x7fffu;
  if (magnitude >= 0x7c00u) return from_bits(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  // No subnormal float on the way, which a thread may be told to read as 0.
  const float subnormal = static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f;
  const float value = magnitude < 0x400u ? subnormal : from_bits((magnitude << 13) + 0x38000000u);
  return from_bits(sign | to_bits(value));
}

uint16_t to_half(float value) {
  const uint32_t bits = to_bits(value), sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds to inf
  if (magnitude < 0x38800000u) {
    // Below 2^-14: adding 1/2 leaves the subnormal's mantissa in the low bits, rounded by the FPU.
    const uint32_t rounded = to_bits(from_bits(magnitude) + 0.5f) - 0x3f000000u;
    return static_cast<uint16_t>(sign | rounded);
  }
  const uint32_t odd = (magnitude >> 13) & 1u;
  return static_cast<uint16_t>(sign | ((magnitude + 0xfffu + odd - 0x38000000u) >> 13));
}

uint16_t to_bfloat(float value) {
  const uint32_t bits = to_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

}  // namespace

void load_row(const Matrix& matrix, int64_t row, float* values) {
  const int64_t n = matrix.columns, offset = row * n;
  if (matrix.dtype == Dtype::float32) {
    std::memcpy(values, static_cast<const float*>(matrix.data) + offset, n * sizeof(float));
  } else {
    const uint16_t* data = static_cast<const uint16_t*>(matrix.data) + offset;
    if (matrix.dtype == Dtype::bfloat16)
      for (int64_t i = 0; i < n; ++i) values[i] = from_bits(uint32_t{data[i]} << 16);
    else
      for (int64_t i = 0; i < n; ++i) values[i] = from_half(data[i]);
  }
  uint32_t bad = 0;
  for (int64_t i = 0; i < n; ++i) bad |= (to_bits(values[i]) & kInfinity) == kInfinity;
  if (bad) std::fill_n(values, n, from_bits(kNan));
}

void store_row(void* data, Dtype dtype, int64_t columns, int64_t row, const float* values) {
  const int64_t offset = row * columns;
  if (dtype == Dtype::float32) {
    std::memcpy(static_cast<float*>(data) + offset, values, columns * sizeof(float));
    return;
  }
  uint16_t* out = static_cast<uint16_t*>(data) + offset;
  if (dtype == Dtype::bfloat16)
    for (int64_t i = 0; i < columns; ++i) out[i] = to_bfloat(values[i]);
  else
    for (int64_t i = 0; i < columns; ++i) out[i] = to_half(values[i]);
}

int32_t class_of(const ClassOrder& order, int64_t label) {
  const auto at = std::lower_bound(order.labels.begin(), order.labels.end(), label);
  if (at == order.labels.end() || *at != label) return -1;
  return static_cast<int32_t>(at - order.labels.begin());
}

ClassOrder sort_by_class(std::vector<int32_t> rows, const int64_t* labels) {
  ClassOrder order;
  if (!rows.empty()) {
    int64_t low = labels[rows[0]], high = low;
    for (int32_t row : rows) {
      low = std::min(low, labels[row]);
      high = std::max(high, labels[row]);
    }
    constexpr uint64_t kSmallRange = 65536;
    const uint64_t range = static_cast<uint64_t>(high) - static_cast<uint64_t>(low);
    if (range < kSmallRange) {
      std::vector<int32_t> next(range + 2, 0);
      for (int32_t row : rows) ++next[labels[row] - low + 1];
      for (uint64_t c = 0; c <= range; ++c) next[c + 1] += next[c];
      order.rows.resize(rows.size());
      for (int32_t row : rows) order.rows[next[labels[row] - low]++] = row;
    } else {
      order.rows = std::move(rows);
      std::stable_sort(order.rows.begin(), order.rows.end(),
                       [&](int32_t a, int32_t b) { return labels[a] < labels[b]; });
    }
  }
  for (size_t i = 0; i < order.rows.size(); ++i) {
    const int64_t label = labels[order.rows[i]];
    if (i == 0 || label != order.labels.back()) {
      order.labels.push_back(label);
      order.start.push_back(static_cast<int32_t>(i));
    }
  }
  order.start.push_back(static_cast<int32_t>(order.rows.size()));
  return order;
}

}  // namespace pipa
