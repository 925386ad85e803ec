// SPDX-License-Identifier: Apache-2.0
// The passes of pixel contrast over the pairs of some rows.
//
// Rows are sorted by class, so almost every tile holds pairs of different classes only, or of one
// class only, and needs no mask. Each pair of row blocks is visited once for both of its sides.
// The "all" form is the "negatives" form of rows that are each a class of their own, and a term
// that is linear in the cosines and hence needs only each class's sum.
#pragma once

#include <algorithm>
#include <cmath>

#include "cpu/packed.h"
#include "cpu/pixel_contrast.h"
#include "cpu/schedule.h"

namespace pipa {

// Who takes part, in which order, how packed.
struct Sweep {
  const PixelContrast& problem;
  const Kernels& kernels;
  const Parallel& parallel;
  ClassOrder order;
  int64_t live;  // rows that take part
  Scores scores;
  Packed x;

  Sweep(const PixelContrast& problem, Isa isa, const Parallel& parallel, Arena* arena,
        Side side = Side::both)
      : problem(problem),
        kernels(kernels_for(isa, problem.x.dtype == Dtype::bfloat16)),
        parallel(parallel),
        order(order_by_class(problem.labels, problem.x.rows,
                             [&](int64_t i) { return problem.labels[i] != problem.ignore_index; })),
        live(static_cast<int64_t>(order.rows.size())),
        scores{0, static_cast<float>(kLog2E / problem.temperature)},
        x(arena, live, problem.x.columns, kernels, kBlock, side) {
    scores.depth = x.depth;
  }

  int64_t rows() const { return x.blocks * kBlock; }  // padding included
  int positives(int c) const { return order.start[c + 1] - order.start[c] - 1; }

  void pack() const {
    parallel_tasks(parallel, static_cast<int>(x.blocks), [&](int block) {
      x.pack_block(kernels, problem.x, block, order.rows.data(), live);
    });
    for (int c = 0; c < order.classes(); ++c)
      for (int r = order.start[c]; r < order.start[c + 1]; ++r)
        x.keys[r] = problem.all_form ? r : c;
    std::fill(x.keys + live, x.keys + rows(), kNoRow);
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

// Whether all pairs of rows of two blocks have keys that differ, or that agree.
inline bool apart(const Block& a, const Block& b) {
  return a.keys[kBlock - 1] < b.keys[0] || b.keys[kBlock - 1] < a.keys[0];
}
inline bool together(const Block& a, const Block& b) {
  return a.keys[0] == b.keys[kBlock - 1] && b.keys[0] == a.keys[kBlock - 1];
}

// What a pass needs of each sorted row, R of them, and where it adds its results.
struct ForwardScratch {
  double* sums;    // [R] z
  double* losses;  // [R, 2] sum of the loss and of its derivative by log z over positives
  float* log_z;    // [R] log2

  ForwardScratch(Arena* arena, const Packed& x)
      : sums(arena->take<double>(x.blocks * kBlock)),
        losses(arena->take<double>(2 * x.blocks * kBlock)),
        log_z(arena->take<float>(x.blocks * kBlock)) {
    clear(sums, x.blocks * kBlock);
    clear(losses, 2 * x.blocks * kBlock);
  }

  void fill_log_z(int64_t rows) const {
    for (int64_t r = 0; r < rows; ++r)
      log_z[r] = sums[r] == 0 ? 0 : static_cast<float>(std::log2(sums[r]));
  }

 private:
  static void clear(double* values, int64_t count) {
    if (values) std::fill_n(values, count, 0.0);
  }
};

struct SortedValues {
  float *z, *u, *w;  // [R]

  SortedValues(Arena* arena, int64_t rows)
      : z(arena->take<float>(rows)), u(arena->take<float>(rows)), w(arena->take<float>(rows)) {}

  RowValues of(int64_t block) const {
    return {z + block * kBlock, u + block * kBlock, w + block * kBlock};
  }

  // What padding has: nothing comes of it.
  void clear(int64_t begin, int64_t end) const {
    std::fill(z + begin, z + end, 1.0f);
    std::fill(u + begin, u + end, 0.0f);
    std::fill(w + begin, w + end, 0.0f);
  }
};

struct BackwardScratch {
  float* gradient;  // as Packed::rows
  SortedValues values;

  BackwardScratch(Arena* arena, const Packed& x)
      : gradient(arena->take<float>(x.offset(x.blocks))), values(arena, x.blocks * kBlock) {
    if (gradient) std::fill_n(gradient, x.offset(x.blocks), 0.0f);
  }
};

void sum_denominators(const Sweep& sweep, const ForwardScratch& scratch);
void sum_positives(const Sweep& sweep, const ForwardScratch& scratch);
void sum_gradients(const Sweep& sweep, const BackwardScratch& scratch);

// Sums over the rows of a class: what the "all" form's positives come to.
struct ClassSum {
  double rows[kMaxDepth] = {};
  double weighted[kMaxDepth] = {};  // by w
  int64_t count = 0;

  void add(const float* row, int depth, double w) {
    for (int d = 0; d < depth; ++d) {
      rows[d] += row[d];
      weighted[d] += w * row[d];
    }
    ++count;
  }
};

// The "all" form's losses of a class's rows with the keys that are in `keys`: n log z minus the
// scores. `among` where those keys are the rows themselves.
void add_class_losses(const Sweep& sweep, int c, const ClassSum& keys, bool among,
                      const ForwardScratch& scratch);

// The "all" form's gradient there: each row loses (w_i + w_j) x_j of its class.
void subtract_class_sums(const Sweep& sweep, int c, const ClassSum& keys, bool among,
                         const BackwardScratch& scratch);

// Of a class of the rows themselves; without values w counts as 0.
ClassSum sum_of_class(const Sweep& sweep, int c, const float* w);

}  // namespace pipa
