// SPDX-License-Identifier: Apache-2.0
#include "cpu/upsample.h"

namespace pipa {

void place_pixels(int64_t low, int64_t full, int64_t padded, int32_t* before, float* share) {
  for (int64_t i = 0; i < padded; ++i) {
    const double centre = (std::min(i, full - 1) + 0.5) * low / full - 0.5;
    const double at = std::min(std::max(centre, 0.0), low - 1.0);
    const int64_t cell = std::min(static_cast<int64_t>(at), std::max<int64_t>(low - 2, 0));
    before[i] = static_cast<int32_t>(cell);
    share[i] = static_cast<float>(at - static_cast<double>(cell));
  }
}

UpsamplingPlan::UpsamplingPlan(Arena* arena, const Upsampling& maps, int threads, int64_t work)
    : maps_(maps),
      padded_(maps.width + kMaxLanes),
      worker_floats_(2 * maps.row_floats() + work),
      left_(arena->take<int32_t>(padded_)),
      above_(arena->take<int32_t>(maps.height)),
      first_row_(arena->take<int32_t>(maps.bands() + 1)),
      right_(arena->take<float>(padded_)),
      lower_(arena->take<float>(maps.height)),
      workers_(arena->take<float>(threads * worker_floats_)) {}

void UpsamplingPlan::fill() const {
  place_pixels(maps_.low_width, maps_.width, padded_, left_, right_);
  place_pixels(maps_.low_height, maps_.height, maps_.height, above_, lower_);
  for (int64_t band = 0, row = 0; band <= maps_.bands(); ++band) {
    while (row < maps_.height && above_[row] < band) ++row;
    first_row_[band] = static_cast<int32_t>(row);
  }
}

void UpsamplingPlan::stage_row(int64_t image, int64_t row, float* to) const {
  const int64_t width = maps_.low_width, stride = maps_.stride();
  const Matrix rows{maps_.logits, maps_.images * maps_.classes * maps_.low_height, width,
                    maps_.dtype};
  for (int64_t k = 0; k < maps_.classes; ++k, to += stride) {
    load_row(rows, (image * maps_.classes + k) * maps_.low_height + row, to);
    std::fill(to + width, to + stride, to[width - 1]);
  }
}

}  // namespace pipa
