// SPDX-License-Identifier: Apache-2.0
#include "cpu/pixel_contrast.h"

#include "cpu/pixel_contrast_sweep.h"

namespace pipa {
namespace {

// The weights of anchors, which add up to 1 over those that have a positive.
struct Shares {
  const Sweep& sweep;
  double sum = 0;

  explicit Shares(const Sweep& sweep) : sweep(sweep) {
    for (int c = 0; c < sweep.order.classes(); ++c)
      if (sweep.positives(c) > 0)
        for (int r = sweep.order.start[c]; r < sweep.order.start[c + 1]; ++r) sum += weight(r);
  }

  double weight(int64_t r) const {
    const float* weights = sweep.problem.weights;
    return weights ? weights[sweep.order.rows[r]] : 1.0;
  }

  // Of each of n positives of an anchor.
  double pair(int64_t r, int n) const { return n > 0 ? weight(r) / (sum * n) : 0; }

  // No anchors there are, or nothing for them to tell apart.
  bool nothing() const {
    return sum == 0 || (!sweep.problem.all_form && sweep.order.classes() < 2);
  }
};

void fill_values(const Sweep& sweep, const Shares& shares, const float* z, const float* u,
                 const SortedValues& values) {
  for (int c = 0; c < sweep.order.classes(); ++c)
    for (int r = sweep.order.start[c]; r < sweep.order.start[c + 1]; ++r) {
      const int32_t row = sweep.order.rows[r];
      values.z[r] = z[row];
      values.u[r] = u[row];
      values.w[r] = static_cast<float>(shares.pair(r, sweep.positives(c)));
    }
  values.clear(sweep.live, sweep.rows());
}

}  // namespace

int64_t pixel_contrast_scratch(const Matrix& features, Isa isa, bool backward) {
  Arena arena(nullptr);
  const Kernels& kernels = kernels_for(isa, features.dtype == Dtype::bfloat16);
  const Packed x(&arena, features.rows, features.columns, kernels, kBlock, Side::both);
  if (backward)
    BackwardScratch(&arena, x);
  else
    ForwardScratch(&arena, x);
  return arena.floats();
}

void pixel_contrast_forward(const PixelContrast& problem, Isa isa, const Parallel& parallel,
                            float* scratch_floats, float* loss, float* z, float* u) {
  std::fill_n(z, problem.x.rows, 0.0f);
  std::fill_n(u, problem.x.rows, 0.0f);
  *loss = 0;
  Arena arena(scratch_floats);
  const Sweep sweep(problem, isa, parallel, &arena);
  const Shares shares(sweep);
  if (shares.nothing()) return;
  const ForwardScratch scratch(&arena, sweep.x);
  sweep.pack();
  sum_denominators(sweep, scratch);
  scratch.fill_log_z(sweep.rows());
  if (problem.all_form)
    parallel_tasks(parallel, sweep.order.classes(), [&](int c) {
      add_class_losses(sweep, c, sum_of_class(sweep, c, nullptr), true, scratch);
    });
  else
    sum_positives(sweep, scratch);

  double total = 0;
  for (int c = 0; c < sweep.order.classes(); ++c) {
    const int n = sweep.positives(c);
    for (int r = sweep.order.start[c]; r < sweep.order.start[c + 1]; ++r) {
      const int32_t row = sweep.order.rows[r];
      z[row] = static_cast<float>(scratch.sums[r]);
      if (n == 0) continue;
      const double w = shares.pair(r, n);
      total += w * scratch.losses[2 * r];
      u[row] = static_cast<float>(w * scratch.losses[2 * r + 1] / scratch.sums[r]);
    }
  }
  *loss = static_cast<float>(total);
}

void pixel_contrast_backward(const PixelContrast& problem, Isa isa, const Parallel& parallel,
                             float* scratch_floats, float grad, const float* z, const float* u,
                             void* grad_x) {
  const int64_t columns = problem.x.columns;
  const int64_t bytes = problem.x.dtype == Dtype::float32 ? 4 : 2;
  std::fill_n(static_cast<char*>(grad_x), problem.x.rows * columns * bytes, '\0');
  Arena arena(scratch_floats);
  const Sweep sweep(problem, isa, parallel, &arena);
  const Shares shares(sweep);
  if (shares.nothing()) return;
  const BackwardScratch scratch(&arena, sweep.x);
  sweep.pack();
  fill_values(sweep, shares, z, u, scratch.values);
  sum_gradients(sweep, scratch);
  if (problem.all_form)
    parallel_tasks(parallel, sweep.order.classes(), [&](int c) {
      const ClassSum sum = sum_of_class(sweep, c, scratch.values.w);
      subtract_class_sums(sweep, c, sum, true, scratch);
    });
  const float scale = static_cast<float>(grad / problem.temperature);
  parallel_tasks(parallel, static_cast<int>(sweep.x.blocks), [&](int block) {
    float values[kMaxDepth];
    const int64_t end = std::min<int64_t>(sweep.live, (block + 1) * kBlock);
    for (int64_t r = block * kBlock; r < end; ++r) {
      RowView(sweep.x, scratch.gradient, r).read(values);
      for (int d = 0; d < columns; ++d) values[d] *= scale;
      store_row(grad_x, problem.x.dtype, columns, sweep.order.rows[r], values);
    }
  });
}

}  // namespace pipa
