// SPDX-License-Identifier: Apache-2.0
// Rows are sorted by class, so almost every tile holds pairs of different classes only, or of one
// class only, and needs no mask. Each pair of row blocks is visited once for both of its sides.
// The "all" form is the "negatives" form of rows that are each a class of their own, and a term
// that is linear in the cosines and hence needs only each class's sum.
#include "cpu/pixel_contrast.h"

#include <algorithm>
#include <cmath>

#include "cpu/packed.h"
#include "cpu/schedule.h"

namespace pipa {
namespace {

constexpr double kLog2E = 1.4426950408889634;

// Everything of a call that both directions share: who takes part, in which order, how packed.
struct Sweep {
  const PixelContrast& problem;
  const Kernels& kernels;
  const Parallel& parallel;
  ClassOrder order;
  int64_t live;  // rows that take part
  Scores scores;
  Packed x;
  double weight_sum = 0;  // of anchors that have a positive

  Sweep(const PixelContrast& problem, Isa isa, const Parallel& parallel, Arena* arena)
      : problem(problem),
        kernels(kernels_for(isa, problem.x.dtype == Dtype::bfloat16)),
        parallel(parallel),
        order(order_by_class(problem.labels, problem.x.rows,
                             [&](int64_t i) { return problem.labels[i] != problem.ignore_index; })),
        live(static_cast<int64_t>(order.rows.size())),
        scores{0, static_cast<float>(kLog2E / problem.temperature)},
        x(arena, live, problem.x.columns, kernels, kBlock, Side::both) {
    scores.depth = x.depth;
    for (int c = 0; c < order.classes(); ++c)
      if (positives(c) > 0)
        for (int r = order.start[c]; r < order.start[c + 1]; ++r) weight_sum += weight(r);
  }

  int positives(int c) const { return order.start[c + 1] - order.start[c] - 1; }
  double weight(int64_t r) const { return problem.weights ? problem.weights[order.rows[r]] : 1.0; }

  // Anchors there are, and something for them to tell apart.
  bool nothing() const { return weight_sum == 0 || (!problem.all_form && order.classes() < 2); }

  void pack() const {
    parallel_tasks(parallel, static_cast<int>(x.blocks), [&](int block) {
      x.pack_block(kernels, problem.x, block, order.rows.data(), live);
    });
    for (int c = 0; c < order.classes(); ++c)
      for (int r = order.start[c]; r < order.start[c + 1]; ++r)
        x.keys[r] = problem.all_form ? r : c;
    for (int64_t r = live; r < x.blocks * kBlock; ++r) x.keys[r] = kNoRow;
  }

  // Whether all pairs of blocks first <= second have keys that differ, or that agree.
  bool apart(int first, int second) const {
    return x.keys[first * kBlock + kBlock - 1] < x.keys[second * kBlock];
  }
  bool together(int first, int second) const {
    return x.keys[first * kBlock] == x.keys[second * kBlock + kBlock - 1];
  }

  // Calls visit(i, j) once for each pair of blocks i <= j that is wanted, so that no two calls at a
  // time share a block.
  template <class Wanted, class Visit>
  void visit_pairs(const Wanted& wanted, const Visit& visit) const {
    const Groups groups(static_cast<int>(x.blocks));
    const auto visits = schedule(groups.count(), [&](int a, int b) {
      for (int i = groups.begin(a); i < groups.begin(a) + groups.members(a); ++i)
        for (int j = std::max(i, groups.begin(b)); j < groups.begin(b) + groups.members(b); ++j)
          if (wanted(i, j)) return true;
      return false;
    });
    run_visits(parallel, visits, groups, [&](int i, int j) {
      if (wanted(i, j)) visit(i, j);
    });
  }
};

struct ForwardScratch {
  double* sums;    // [R] z, R = rows of all blocks
  double* losses;  // [R, 2] sum of the loss and of its derivative by log z over positives
  float* log_z;    // [R] log2

  ForwardScratch(Arena* arena, const Packed& x)
      : sums(arena->take<double>(x.blocks * kBlock)),
        losses(arena->take<double>(2 * x.blocks * kBlock)),
        log_z(arena->take<float>(x.blocks * kBlock)) {}
};

struct BackwardScratch {
  float* gradient;        // as Packed::rows
  float *z_rows, *u, *w;  // [R] sorted

  BackwardScratch(Arena* arena, const Packed& x)
      : gradient(arena->take<float>(x.offset(x.blocks))),
        z_rows(arena->take<float>(x.blocks * kBlock)),
        u(arena->take<float>(x.blocks * kBlock)),
        w(arena->take<float>(x.blocks * kBlock)) {}

  RowValues values(int64_t block) const {
    return {z_rows + block * kBlock, u + block * kBlock, w + block * kBlock};
  }
};

void sum_denominators(const Sweep& sweep, const ForwardScratch& scratch) {
  const Packed& x = sweep.x;
  std::fill_n(scratch.sums, x.blocks * kBlock, 0.0);
  sweep.visit_pairs([&](int i, int j) { return !sweep.together(i, j); },
                    [&](int i, int j) {
                      sweep.kernels.sum(sweep.scores, x.block(i), x.block(j),
                                        scratch.sums + i * kBlock,
                                        i == j ? nullptr : scratch.sums + j * kBlock);
                    });
  for (int64_t r = 0; r < x.blocks * kBlock; ++r)
    scratch.log_z[r] = scratch.sums[r] == 0 ? 0 : static_cast<float>(std::log2(scratch.sums[r]));
}

void sum_positives(const Sweep& sweep, const ForwardScratch& scratch) {
  const Packed& x = sweep.x;
  std::fill_n(scratch.losses, 2 * x.blocks * kBlock, 0.0);
  sweep.visit_pairs([&](int i, int j) { return !sweep.apart(i, j); },
                    [&](int i, int j) {
                      sweep.kernels.positives(
                          sweep.scores, x.block(i), x.block(j), scratch.log_z + i * kBlock,
                          scratch.log_z + j * kBlock, scratch.losses + 2 * i * kBlock,
                          i == j ? nullptr : scratch.losses + 2 * j * kBlock);
                    });
}

// The "all" form's losses: n log z minus the scores of a class, by its sum of rows.
void sum_class_scores(const Sweep& sweep, const ForwardScratch& scratch) {
  const Packed& x = sweep.x;
  parallel_tasks(sweep.parallel, sweep.order.classes(), [&](int c) {
    const int begin = sweep.order.start[c], end = sweep.order.start[c + 1];
    double sum[kMaxDepth] = {};
    float row[kMaxDepth];
    for (int r = begin; r < end; ++r) {
      RowView(x, x.rows, r).read(row);
      for (int d = 0; d < x.depth; ++d) sum[d] += row[d];
    }
    const double n = sweep.positives(c);
    for (int r = begin; r < end; ++r) {
      RowView(x, x.rows, r).read(row);
      double cosines = 0;
      for (int d = 0; d < x.depth; ++d) cosines += row[d] * (sum[d] - row[d]);
      scratch.losses[2 * r] =
          n * std::log(scratch.sums[r]) - (cosines - n) / sweep.problem.temperature;
      scratch.losses[2 * r + 1] = n;
    }
  });
}

// The "all" form's positives: each row loses (w_i + w_j) x_j of its class.
void subtract_class_sums(const Sweep& sweep, const BackwardScratch& scratch) {
  const Packed& x = sweep.x;
  parallel_tasks(sweep.parallel, sweep.order.classes(), [&](int c) {
    const int begin = sweep.order.start[c], end = sweep.order.start[c + 1];
    if (sweep.positives(c) == 0) return;
    double sum[kMaxDepth] = {}, weighted[kMaxDepth] = {};
    float row[kMaxDepth], out[kMaxDepth];
    for (int r = begin; r < end; ++r) {
      RowView(x, x.rows, r).read(row);
      const double w = sweep.weight(r) / (sweep.weight_sum * sweep.positives(c));
      for (int d = 0; d < x.depth; ++d) {
        sum[d] += row[d];
        weighted[d] += w * row[d];
      }
    }
    for (int r = begin; r < end; ++r) {
      const double w = sweep.weight(r) / (sweep.weight_sum * sweep.positives(c));
      RowView(x, x.rows, r).read(row);
      RowView(x, scratch.gradient, r).read(out);
      for (int d = 0; d < x.depth; ++d)
        out[d] -= static_cast<float>(w * (sum[d] - row[d]) + weighted[d] - w * row[d]);
      RowView(x, scratch.gradient, r).write(out);
    }
  });
}

void fill_row_values(const Sweep& sweep, const float* z, const float* u,
                     const BackwardScratch& scratch) {
  for (int c = 0; c < sweep.order.classes(); ++c) {
    const int n = sweep.positives(c);
    for (int r = sweep.order.start[c]; r < sweep.order.start[c + 1]; ++r) {
      const int32_t row = sweep.order.rows[r];
      scratch.z_rows[r] = z[row];
      scratch.u[r] = u[row];
      // In the "all" form the only pair of equal keys is a row with itself, which is left out.
      scratch.w[r] = n > 0 && !sweep.problem.all_form
                         ? static_cast<float>(sweep.weight(r) / (sweep.weight_sum * n))
                         : 0.0f;
    }
  }
  for (int64_t r = sweep.live; r < sweep.x.blocks * kBlock; ++r) {
    scratch.z_rows[r] = 1;
    scratch.u[r] = scratch.w[r] = 0;
  }
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
  if (sweep.nothing()) return;
  const ForwardScratch scratch(&arena, sweep.x);
  sweep.pack();
  sum_denominators(sweep, scratch);
  if (problem.all_form)
    sum_class_scores(sweep, scratch);
  else
    sum_positives(sweep, scratch);

  double total = 0;
  for (int c = 0; c < sweep.order.classes(); ++c) {
    const int n = sweep.positives(c);
    for (int r = sweep.order.start[c]; r < sweep.order.start[c + 1]; ++r) {
      const int32_t row = sweep.order.rows[r];
      z[row] = static_cast<float>(scratch.sums[r]);
      if (n == 0) continue;
      const double w = sweep.weight(r) / (sweep.weight_sum * n);
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
  if (sweep.nothing()) return;
  const BackwardScratch scratch(&arena, sweep.x);
  const Packed& x = sweep.x;
  sweep.pack();
  fill_row_values(sweep, z, u, scratch);
  std::fill_n(scratch.gradient, x.offset(x.blocks), 0.0f);
  sweep.visit_pairs([](int, int) { return true; },
                    [&](int i, int j) {
                      sweep.kernels.gradient(sweep.scores, x.block(i), x.block(j),
                                             scratch.values(i), scratch.values(j),
                                             scratch.gradient + x.offset(i),
                                             i == j ? nullptr : scratch.gradient + x.offset(j));
                    });
  if (problem.all_form) subtract_class_sums(sweep, scratch);
  const float scale = static_cast<float>(grad / problem.temperature);
  parallel_tasks(parallel, static_cast<int>(x.blocks), [&](int block) {
    float values[kMaxDepth];
    const int64_t end = std::min<int64_t>(sweep.live, (block + 1) * kBlock);
    for (int64_t r = block * kBlock; r < end; ++r) {
      RowView(x, scratch.gradient, r).read(values);
      for (int d = 0; d < columns; ++d) values[d] *= scale;
      store_row(grad_x, problem.x.dtype, columns, sweep.order.rows[r], values);
    }
  });
}

}  // namespace pipa
