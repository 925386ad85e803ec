// SPDX-License-Identifier: Apache-2.0
// Attention-style: one sweep over the bank gives each anchor's sum of e and sum of e times key,
// which is all that the loss and its gradient need. The bank passes through in slabs that all
// workers pack together and then read, so the scratch does not grow with the bank.
#include "cpu/patch_consistency.h"

#include <algorithm>
#include <cmath>

#include "cpu/packed.h"

namespace pipa {
namespace {

const Kernels& kernels_of(const Matrix& anchors, const Matrix& bank, Isa isa) {
  return kernels_for(isa, anchors.dtype == Dtype::bfloat16 && bank.dtype == Dtype::bfloat16);
}

struct Scratch {
  Packed anchors, slab;
  float* output;  // as Packed::rows of anchors: sum of e times key
  double* sums;   // [R] sum of e

  Scratch(Arena* arena, int64_t n, int64_t m, int64_t d, const Kernels& kernels)
      : anchors(arena, n, d, kernels, kBlock, Side::left),
        slab(arena, slab_rows(n, m, kBankBlock), d, kernels, kBankBlock, Side::right),
        output(arena->take<float>(anchors.offset(anchors.blocks))),
        sums(arena->take<double>(anchors.blocks * kBlock)) {}
};

void pack_anchors(const PatchConsistency& problem, const ClassOrder& order, const Kernels& kernels,
                  const Parallel& parallel, const Packed& anchors) {
  const int64_t live = static_cast<int64_t>(order.rows.size());
  for (int c = 0; c < order.classes(); ++c)
    std::fill(anchors.keys + order.start[c], anchors.keys + order.start[c + 1], c);
  std::fill(anchors.keys + live, anchors.keys + anchors.blocks * kBlock, kNoRow);
  parallel_tasks(parallel, static_cast<int>(anchors.blocks), [&](int block) {
    anchors.pack_block(kernels, problem.anchors, block, order.rows.data(), live);
  });
}

// Packs keys begin .. end - 1 by ascending class; returns the number of blocks they fill.
int pack_slab(const PatchConsistency& problem, const ClassOrder& order, const Kernels& kernels,
              const Parallel& parallel, const Packed& slab, int64_t begin, int64_t end) {
  std::vector<int64_t> classes(end - begin);
  std::vector<int32_t> keys;
  for (int64_t j = begin; j < end; ++j) {
    if (problem.bank_labels[j] < 0) continue;
    classes[j - begin] = class_of(order, problem.bank_labels[j]);
    keys.push_back(static_cast<int32_t>(j - begin));
  }
  ClassOrder sorted = sort_by_class(std::move(keys), classes.data());
  const int64_t count = static_cast<int64_t>(sorted.rows.size());
  const int blocks = static_cast<int>(blocks_of(count, kBankBlock));
  for (int64_t i = 0; i < count; ++i) {
    slab.keys[i] = static_cast<int32_t>(classes[sorted.rows[i]]);
    sorted.rows[i] += static_cast<int32_t>(begin);
  }
  std::fill(slab.keys + count, slab.keys + blocks * kBankBlock, kNoRow);
  parallel_tasks(parallel, blocks, [&](int block) {
    slab.pack_block(kernels, problem.bank, block, sorted.rows.data(), count);
  });
  return blocks;
}

// L_i = softplus(log z - s) and dL_i / da = (o - z p) / ((z + e) temperature), s of the positive.
double finish_row(const PatchConsistency& problem, const Scratch& scratch, int64_t sorted,
                  int32_t row, double weight, float* grad_anchors) {
  const int64_t columns = problem.anchors.columns;
  const double z = scratch.sums[sorted];
  if (z == 0) return 0;
  float anchor[kMaxDepth], positive[kMaxDepth], output[kMaxDepth];
  load_row(problem.anchors, row, anchor);
  load_row(problem.positives, row, positive);
  RowView(scratch.anchors, scratch.output, sorted).read(output);
  double cosine = 0;
  for (int64_t d = 0; d < columns; ++d) cosine += static_cast<double>(anchor[d]) * positive[d];
  const double score = (cosine - 1) / problem.temperature;
  const double scale = weight / ((z + std::exp(score)) * problem.temperature);
  float* grad = grad_anchors + row * columns;
  for (int64_t d = 0; d < columns; ++d)
    grad[d] = static_cast<float>(scale * (output[d] - z * positive[d]));
  const double logit = std::log(z) - score;
  return weight * (std::max(logit, 0.0) + std::log1p(std::exp(-std::abs(logit))));
}

}  // namespace

int64_t patch_consistency_scratch(const Matrix& anchors, const Matrix& bank, Isa isa) {
  Arena arena(nullptr);
  Scratch(&arena, anchors.rows, bank.rows, anchors.columns, kernels_of(anchors, bank, isa));
  return arena.floats();
}

void patch_consistency_forward(const PatchConsistency& problem, Isa isa, const Parallel& parallel,
                               float* scratch_floats, float* loss, float* grad_anchors) {
  const int64_t n = problem.anchors.rows, m = problem.bank.rows;
  std::fill_n(grad_anchors, n * problem.anchors.columns, 0.0f);
  *loss = 0;
  auto weight = [&](int64_t i) { return problem.weights ? problem.weights[i] : 1.0f; };
  const ClassOrder order = order_by_class(problem.anchor_labels, n, [&](int64_t i) {
    return problem.anchor_labels[i] >= 0 && weight(i) != 0;
  });
  double weight_sum = 0;
  for (int32_t row : order.rows) weight_sum += weight(row);
  if (weight_sum == 0) return;

  const int64_t live = static_cast<int64_t>(order.rows.size());
  const Kernels& kernels = kernels_of(problem.anchors, problem.bank, isa);
  Arena arena(scratch_floats);
  const Scratch scratch(&arena, live, m, problem.anchors.columns, kernels);
  const Packed &anchors = scratch.anchors, &slab = scratch.slab;
  const Scores scores{anchors.depth, static_cast<float>(kLog2E / problem.temperature)};
  pack_anchors(problem, order, kernels, parallel, anchors);
  std::fill_n(scratch.output, anchors.offset(anchors.blocks), 0.0f);
  std::fill_n(scratch.sums, anchors.blocks * kBlock, 0.0);
  const int64_t step = slab.blocks * kBankBlock;
  for (int64_t begin = 0; begin < m; begin += step) {
    const int blocks =
        pack_slab(problem, order, kernels, parallel, slab, begin, std::min(m, begin + step));
    parallel_tasks(parallel, static_cast<int>(anchors.blocks), [&](int block) {
      for (int key_block = 0; key_block < blocks; ++key_block)
        kernels.attend(scores, anchors.block(block), slab.block(key_block),
                       scratch.sums + block * kBlock, scratch.output + anchors.offset(block));
    });
  }

  // Losses are summed in a fixed order after the fact, so threads do not change the result.
  parallel_tasks(parallel, static_cast<int>(anchors.blocks), [&](int block) {
    const int64_t end = std::min<int64_t>(live, (block + 1) * kBlock);
    for (int64_t i = block * kBlock; i < end; ++i)
      scratch.sums[i] = finish_row(problem, scratch, i, order.rows[i],
                                   weight(order.rows[i]) / weight_sum, grad_anchors);
  });
  double total = 0;
  for (int64_t i = 0; i < live; ++i) total += scratch.sums[i];
  *loss = static_cast<float>(total);
}

}  // namespace pipa
