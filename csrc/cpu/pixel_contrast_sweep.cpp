// SPDX-License-Identifier: Apache-2.0
#include "cpu/pixel_contrast_sweep.h"

namespace pipa {

void sum_denominators(const Sweep& sweep, const ForwardScratch& scratch) {
  const Packed& x = sweep.x;
  sweep.visit_pairs([&](int i, int j) { return !together(x.block(i), x.block(j)); },
                    [&](int i, int j) {
                      sweep.kernels.sum(sweep.scores, x.block(i), x.block(j),
                                        scratch.sums + i * kBlock,
                                        i == j ? nullptr : scratch.sums + j * kBlock);
                    });
}

void sum_positives(const Sweep& sweep, const ForwardScratch& scratch) {
  const Packed& x = sweep.x;
  sweep.visit_pairs([&](int i, int j) { return !apart(x.block(i), x.block(j)); },
                    [&](int i, int j) {
                      sweep.kernels.positives(
                          sweep.scores, x.block(i), x.block(j), scratch.log_z + i * kBlock,
                          scratch.log_z + j * kBlock, scratch.losses + 2 * i * kBlock,
                          i == j ? nullptr : scratch.losses + 2 * j * kBlock);
                    });
}

void sum_gradients(const Sweep& sweep, const BackwardScratch& scratch) {
  const Packed& x = sweep.x;
  sweep.visit_pairs([](int, int) { return true; },
                    [&](int i, int j) {
                      sweep.kernels.gradient(sweep.scores, x.block(i), x.block(j),
                                             scratch.values.of(i), scratch.values.of(j),
                                             scratch.gradient + x.offset(i),
                                             i == j ? nullptr : scratch.gradient + x.offset(j));
                    });
}

ClassSum sum_of_class(const Sweep& sweep, int c, const float* w) {
  ClassSum sum;
  float row[kMaxDepth];
  for (int r = sweep.order.start[c]; r < sweep.order.start[c + 1]; ++r) {
    RowView(sweep.x, sweep.x.rows, r).read(row);
    sum.add(row, sweep.x.depth, w ? w[r] : 0);
  }
  return sum;
}

void add_class_losses(const Sweep& sweep, int c, const ClassSum& keys, bool among,
                      const ForwardScratch& scratch) {
  float row[kMaxDepth];
  const double n = static_cast<double>(keys.count - among);
  for (int r = sweep.order.start[c]; r < sweep.order.start[c + 1]; ++r) {
    RowView(sweep.x, sweep.x.rows, r).read(row);
    double cosines = 0;
    for (int d = 0; d < sweep.x.depth; ++d)
      cosines += row[d] * (keys.rows[d] - (among ? row[d] : 0.0f));
    const double log_z = n > 0 ? n * std::log(scratch.sums[r]) : 0;  // without keys, z may be 0
    scratch.losses[2 * r] += log_z - (cosines - n) / sweep.problem.temperature;
    scratch.losses[2 * r + 1] += n;
  }
}

void subtract_class_sums(const Sweep& sweep, int c, const ClassSum& keys, bool among,
                         const BackwardScratch& scratch) {
  float row[kMaxDepth], out[kMaxDepth];
  for (int r = sweep.order.start[c]; r < sweep.order.start[c + 1]; ++r) {
    const double w = scratch.values.w[r];
    RowView(sweep.x, sweep.x.rows, r).read(row);
    RowView(sweep.x, scratch.gradient, r).read(out);
    for (int d = 0; d < sweep.x.depth; ++d) {
      const double self = among ? row[d] : 0;
      out[d] -= static_cast<float>(w * (keys.rows[d] - self) + keys.weighted[d] - w * self);
    }
    RowView(sweep.x, scratch.gradient, r).write(out);
  }
}

}  // namespace pipa
