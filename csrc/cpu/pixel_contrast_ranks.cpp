// SPDX-License-Identifier: Apache-2.0
// Rows of other ranks pass through in slabs that all workers pack together and then read, so that
// scratch does not grow with the number of ranks. Only the rows' own sides are summed: the other
// ranks do theirs.
#include "cpu/pixel_contrast_ranks.h"

#include "cpu/pixel_contrast_sweep.h"

namespace pipa {
namespace {

// Rows of other ranks by class, absent from the sweep or not.
struct Keys {
  const Sweep& sweep;
  const OtherRanks& others;
  std::vector<int64_t> classes;  // [M] as the sweep counts them, -1 where it has none
  ClassOrder order;
  Packed slab;
  SortedValues values;  // of the slab

  Keys(const Sweep& sweep, const OtherRanks& others, Arena* arena)
      : sweep(sweep),
        others(others),
        classes(classes_of()),
        order(order_by_class(
            classes.data(), others.x.rows,
            [&](int64_t j) { return others.labels[j] != sweep.problem.ignore_index; })),
        slab(arena, slab_rows(sweep.problem.x.rows, others.x.rows, kBlock), others.x.columns,
             sweep.kernels, kBlock, Side::right),
        values(arena, slab.blocks * kBlock) {}

  // Calls visit(i, a, j, b) for every block i of the rows with every block j of each slab, by one
  // worker for each i, in order.
  template <class Visit>
  void visit_pairs(bool with_values, const Visit& visit) const {
    const int64_t step = slab.blocks * kBlock, live = static_cast<int64_t>(order.rows.size());
    for (int64_t begin = 0; begin < live; begin += step) {
      const int blocks = pack(begin, std::min(live, begin + step), with_values);
      parallel_tasks(sweep.parallel, static_cast<int>(sweep.x.blocks), [&](int i) {
        for (int j = 0; j < blocks; ++j) visit(i, sweep.x.block(i), j, slab.block(j));
      });
    }
  }

  // Calls visit(c, sum) for each class of the rows that keys have too.
  template <class Visit>
  void visit_classes(bool weighted, const Visit& visit) const {
    parallel_tasks(sweep.parallel, order.classes(), [&](int k) {
      if (order.labels[k] < 0) return;
      ClassSum sum;
      float row[kMaxDepth] = {};
      for (int r = order.start[k]; r < order.start[k + 1]; ++r) {
        load_row(others.x, order.rows[r], row);
        sum.add(row, sweep.x.depth, weighted ? others.saved.w[order.rows[r]] : 0);
      }
      visit(static_cast<int>(order.labels[k]), sum);
    });
  }

 private:
  std::vector<int64_t> classes_of() const {
    std::vector<int64_t> classes(others.x.rows);
    for (int64_t j = 0; j < others.x.rows; ++j)
      classes[j] = class_of(sweep.order, others.labels[j]);
    return classes;
  }

  int pack(int64_t begin, int64_t end, bool with_values) const {
    const int blocks = static_cast<int>(blocks_of(end - begin, kBlock));
    const int32_t* rows = order.rows.data() + begin;
    for (int64_t r = 0; r < end - begin; ++r) {
      // In the "all" form no key of another rank agrees with a row's.
      slab.keys[r] = sweep.problem.all_form ? -1 : static_cast<int32_t>(classes[rows[r]]);
      if (!with_values) continue;
      values.z[r] = others.saved.z[rows[r]];
      values.u[r] = others.saved.u[rows[r]];
      values.w[r] = others.saved.w[rows[r]];
    }
    std::fill(slab.keys + (end - begin), slab.keys + blocks * kBlock, kNoRow);
    values.clear(end - begin, blocks * kBlock);
    parallel_tasks(sweep.parallel, blocks, [&](int block) {
      slab.pack_block(sweep.kernels, others.x, block, rows, end - begin);
    });
    return blocks;
  }
};

struct Problem {
  Arena arena;
  Sweep sweep;

  Problem(const PixelContrast& rows, const OtherRanks* others, Isa isa, const Parallel& parallel,
          float* scratch)
      : arena(scratch), sweep(rows, isa, parallel, &arena, others ? Side::left : Side::both) {
    sweep.pack();
  }

  // Calls visit(r, row) for each sorted row and the row that it was.
  template <class Visit>
  void each_row(const Visit& visit) const {
    for (int64_t r = 0; r < sweep.live; ++r) visit(r, sweep.order.rows[r]);
  }
};

}  // namespace

int64_t pixel_contrast_ranks_scratch(const Matrix& rows, const Matrix* others, Isa isa) {
  Arena arena(nullptr);
  const Kernels& kernels = kernels_for(isa, rows.dtype == Dtype::bfloat16);
  const Packed x(&arena, rows.rows, rows.columns, kernels, kBlock,
                 others ? Side::left : Side::both);
  if (others) {
    const Packed slab(&arena, slab_rows(rows.rows, others->rows, kBlock), rows.columns, kernels,
                      kBlock, Side::right);
    SortedValues(&arena, slab.blocks * kBlock);
  }
  ForwardScratch(&arena, x);
  BackwardScratch(&arena, x);
  return arena.floats();
}

void pixel_contrast_denominators(const PixelContrast& rows, const OtherRanks* others, Isa isa,
                                 const Parallel& parallel, float* scratch_floats, float* z) {
  Problem problem(rows, others, isa, parallel, scratch_floats);
  const Sweep& sweep = problem.sweep;
  const ForwardScratch scratch(&problem.arena, sweep.x);
  if (!others)
    sum_denominators(sweep, scratch);
  else
    Keys(sweep, *others, &problem.arena)
        .visit_pairs(false, [&](int i, const Block& a, int, const Block& b) {
          if (!together(a, b))
            sweep.kernels.sum(sweep.scores, a, b, scratch.sums + i * kBlock, nullptr);
        });
  std::fill_n(z, rows.x.rows, 0.0f);
  problem.each_row([&](int64_t r, int32_t row) { z[row] = static_cast<float>(scratch.sums[r]); });
}

void pixel_contrast_positives(const PixelContrast& rows, const OtherRanks* others, Isa isa,
                              const Parallel& parallel, float* scratch_floats, const float* z,
                              float* losses, float* slopes) {
  Problem problem(rows, others, isa, parallel, scratch_floats);
  const Sweep& sweep = problem.sweep;
  const ForwardScratch scratch(&problem.arena, sweep.x);
  problem.each_row([&](int64_t r, int32_t row) { scratch.sums[r] = z[row]; });
  scratch.fill_log_z(sweep.rows());
  if (others) {
    const Keys keys(sweep, *others, &problem.arena);
    if (rows.all_form)
      keys.visit_classes(false, [&](int c, const ClassSum& sum) {
        add_class_losses(sweep, c, sum, false, scratch);
      });
    else
      keys.visit_pairs(false, [&](int i, const Block& a, int, const Block& b) {
        if (!apart(a, b))
          sweep.kernels.positives(sweep.scores, a, b, scratch.log_z + i * kBlock, nullptr,
                                  scratch.losses + 2 * i * kBlock, nullptr);
      });
  } else if (rows.all_form) {
    parallel_tasks(parallel, sweep.order.classes(), [&](int c) {
      add_class_losses(sweep, c, sum_of_class(sweep, c, nullptr), true, scratch);
    });
  } else {
    sum_positives(sweep, scratch);
  }
  std::fill_n(losses, rows.x.rows, 0.0f);
  std::fill_n(slopes, rows.x.rows, 0.0f);
  problem.each_row([&](int64_t r, int32_t row) {
    losses[row] = static_cast<float>(scratch.losses[2 * r]);
    slopes[row] = static_cast<float>(scratch.losses[2 * r + 1]);
  });
}

void pixel_contrast_pulls(const PixelContrast& rows, const OtherRanks* others, Isa isa,
                          const Parallel& parallel, float* scratch_floats, const SavedRows& saved,
                          float* pulls) {
  Problem problem(rows, others, isa, parallel, scratch_floats);
  const Sweep& sweep = problem.sweep;
  const BackwardScratch scratch(&problem.arena, sweep.x);
  problem.each_row([&](int64_t r, int32_t row) {
    scratch.values.z[r] = saved.z[row];
    scratch.values.u[r] = saved.u[row];
    scratch.values.w[r] = saved.w[row];
  });
  scratch.values.clear(sweep.live, sweep.rows());
  if (others) {
    const Keys keys(sweep, *others, &problem.arena);
    keys.visit_pairs(true, [&](int i, const Block& a, int j, const Block& b) {
      sweep.kernels.gradient(sweep.scores, a, b, scratch.values.of(i), keys.values.of(j),
                             scratch.gradient + sweep.x.offset(i), nullptr);
    });
    if (rows.all_form)
      keys.visit_classes(true, [&](int c, const ClassSum& sum) {
        subtract_class_sums(sweep, c, sum, false, scratch);
      });
  } else {
    sum_gradients(sweep, scratch);
    if (rows.all_form)
      parallel_tasks(parallel, sweep.order.classes(), [&](int c) {
        const ClassSum sum = sum_of_class(sweep, c, scratch.values.w);
        subtract_class_sums(sweep, c, sum, true, scratch);
      });
  }
  const int64_t columns = rows.x.columns;
  std::fill_n(pulls, rows.x.rows * columns, 0.0f);
  parallel_tasks(parallel, static_cast<int>(sweep.x.blocks), [&](int block) {
    float values[kMaxDepth];
    const int64_t end = std::min<int64_t>(sweep.live, (block + 1) * kBlock);
    for (int64_t r = block * kBlock; r < end; ++r) {
      RowView(sweep.x, scratch.gradient, r).read(values);
      std::copy_n(values, columns, pulls + sweep.order.rows[r] * columns);
    }
  });
}

}  // namespace pipa
