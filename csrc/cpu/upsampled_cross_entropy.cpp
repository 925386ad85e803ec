// SPDX-License-Identifier: Apache-2.0
// One sweep over the pixels gives the loss and its gradient: while a tile's exponentials are at
// hand, the slopes are theirs times a factor, and only the number of pixels is missing, which
// scales the small map at the end. A chunk of bands adds to the rows above them and to the row
// below the last; that one it keeps apart, for whoever scales the rows to add.
#include "cpu/upsampled_cross_entropy.h"

#include <cstring>

namespace pipa {
namespace {

int64_t work_floats(const Upsampling& maps, int lanes, bool with_slope) {
  return (with_slope ? 2 * maps.row_floats() : 0) + 5 * maps.classes * lanes;
}

struct Scratch {
  UpsamplingPlan plan;
  LossSums* sums;  // [tasks]
  float* carry;    // [tasks, K, w] the row below the last band; null without a gradient

  Scratch(Arena* arena, const Upsampling& maps, int lanes, int threads, bool with_slope)
      : plan(arena, maps, threads, work_floats(maps, lanes, with_slope)),
        sums(arena->take<LossSums>(maps.tasks())),
        carry(with_slope ? arena->take<float>(maps.tasks() * maps.classes * maps.low_width)
                         : nullptr) {}
};

// Copies the columns of a row [K, stride] to where rows of classes lie `to_stride` apart.
void unpack_row(const Upsampling& maps, const float* row, int64_t to_stride, float* to) {
  for (int64_t k = 0; k < maps.classes; ++k)
    std::memcpy(to + k * to_stride, row + k * maps.stride(), maps.low_width * sizeof(float));
}

LossSums sweep_chunk(const UpsampledCrossEntropy& problem, const UpsampleKernels& kernels,
                     const UpsamplingPlan& plan, const Chunk& chunk, int worker,
                     float* slope,    // [K, h, w] of the image, or null
                     float* carry) {  // [K, w]
  const Upsampling& maps = problem.maps;
  const int64_t width = maps.low_width, plane = maps.low_height * width;
  LossSums sums;
  Slope rows{};
  plan.visit_bands(chunk, worker, [&](const Band& band, int64_t index, int64_t pixel, float* work) {
    const Targets targets{problem.labels + pixel,
                          problem.weights ? problem.weights + pixel : nullptr,
                          problem.ignore_index};
    if (!slope) return kernels.cross_entropy(band, targets, rows, work, &sums);
    if (index == chunk.begin) {
      rows = {work, work + maps.row_floats()};
      std::fill_n(work, 2 * maps.row_floats(), 0.0f);
    }
    kernels.cross_entropy(band, targets, rows, work + 2 * maps.row_floats(), &sums);
    unpack_row(maps, rows.above, plane, slope + index * width);
    std::fill_n(rows.above, maps.row_floats(), 0.0f);
    std::swap(rows.above, rows.below);
  });
  if (!slope || maps.low_height == 1) return sums;
  if (chunk.end == maps.bands())
    unpack_row(maps, rows.above, plane, slope + chunk.end * width);
  else
    unpack_row(maps, rows.above, width, carry);
  return sums;
}

// Adds what the chunk before has kept, and scales.
void finish_chunk(const Upsampling& maps, const Chunk& chunk, float scale,
                  const float* carry,  // [K, w] of the chunk before
                  float* slope) {      // [K, h, w] of the image
  const int64_t width = maps.low_width;
  const int64_t end = chunk.end == maps.bands() ? maps.low_height : chunk.end;
  for (int64_t k = 0; k < maps.classes; ++k) {
    float* rows = slope + (k * maps.low_height + chunk.begin) * width;
    if (chunk.index > 0)
      for (int64_t i = 0; i < width; ++i) rows[i] += carry[k * width + i];
    for (int64_t i = 0; i < (end - chunk.begin) * width; ++i) rows[i] *= scale;
  }
}

}  // namespace

int64_t upsampled_cross_entropy_scratch(const Upsampling& maps, Isa isa, int threads,
                                        bool with_slope) {
  Arena arena(nullptr);
  Scratch(&arena, maps, upsample_kernels_for(isa).lanes, threads, with_slope);
  return arena.floats();
}

bool upsampled_cross_entropy_forward(const UpsampledCrossEntropy& problem, Isa isa,
                                     const Parallel& parallel, float* scratch_floats, float* loss,
                                     float* slope, int64_t* wrong_label) {
  const Upsampling& maps = problem.maps;
  const UpsampleKernels& kernels = upsample_kernels_for(isa);
  *loss = 0;
  if (maps.tasks() == 0) {
    if (slope) std::fill_n(slope, maps.values(), 0.0f);
    return true;
  }
  Arena arena(scratch_floats);
  const Scratch scratch(&arena, maps, kernels.lanes, parallel.threads, slope != nullptr);
  scratch.plan.fill();
  const int64_t image = maps.classes * maps.low_height * maps.low_width;
  const int64_t row = maps.classes * maps.low_width;
  parallel_tasks(parallel, maps.tasks(), [&](int task, int worker) {
    const Chunk chunk(maps, task);
    scratch.sums[task] = sweep_chunk(problem, kernels, scratch.plan, chunk, worker,
                                     slope ? slope + chunk.image * image : nullptr,
                                     slope ? scratch.carry + task * row : nullptr);
  });

  LossSums total;
  for (int task = 0; task < maps.tasks(); ++task) {
    const LossSums& part = scratch.sums[task];
    if (part.any_wrong) {
      *wrong_label = part.wrong;
      return false;
    }
    total.loss += part.loss;
    total.count += part.count;
  }
  const int64_t count = std::max<int64_t>(1, problem.all_pixels ? maps.pixels() : total.count);
  *loss = static_cast<float>(total.loss / static_cast<double>(count));
  if (!slope) return true;
  parallel_tasks(parallel, maps.tasks(), [&](int task) {
    const Chunk chunk(maps, task);
    finish_chunk(maps, chunk, 1.0f / static_cast<float>(count),
                 chunk.index > 0 ? scratch.carry + (task - 1) * row : nullptr,
                 slope + chunk.image * image);
  });
  return true;
}

}  // namespace pipa
