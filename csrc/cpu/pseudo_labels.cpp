// SPDX-License-Identifier: Apache-2.0
// A tile's logits stay in the nearest cache between the sweep that finds their maximum and the one
// that sums their exponentials; the maximum's odds are one over that sum.
#include "cpu/pseudo_labels.h"

namespace pipa {
namespace {

struct Scratch {
  UpsamplingPlan plan;
  int64_t* confident;  // [tasks] pixels

  Scratch(Arena* arena, const Upsampling& maps, int lanes, int threads)
      : plan(arena, maps, threads, 3 * maps.classes * lanes),
        confident(arena->take<int64_t>(maps.tasks())) {}
};

}  // namespace

int64_t pseudo_labels_scratch(const Upsampling& maps, Isa isa, int threads) {
  Arena arena(nullptr);
  Scratch(&arena, maps, upsample_kernels_for(isa).lanes, threads);
  return arena.floats();
}

void pseudo_labels(const Upsampling& maps, float threshold, Isa isa, const Parallel& parallel,
                   float* scratch_floats, int64_t* labels, float* confidence,
                   float* confident_fraction) {
  *confident_fraction = 0;
  if (maps.tasks() == 0) return;
  const UpsampleKernels& kernels = upsample_kernels_for(isa);
  Arena arena(scratch_floats);
  const Scratch scratch(&arena, maps, kernels.lanes, parallel.threads);
  scratch.plan.fill();
  parallel_tasks(parallel, maps.tasks(), [&](int task, int worker) {
    int64_t confident = 0;
    scratch.plan.visit_bands(
        Chunk(maps, task), worker, [&](const Band& band, int64_t, int64_t pixel, float* work) {
          confident +=
              kernels.pseudo_labels(band, threshold, work, labels + pixel, confidence + pixel);
        });
    scratch.confident[task] = confident;
  });
  int64_t confident = 0;
  for (int task = 0; task < maps.tasks(); ++task) confident += scratch.confident[task];
  *confident_fraction = static_cast<float>(confident) / static_cast<float>(maps.pixels());
}

}  // namespace pipa
