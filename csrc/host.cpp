// SPDX-License-Identifier: Apache-2.0
// pipa_fast._host: what was compiled, what this CPU has, and the kernels' host-side logic for
// tests.
#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <thread>

#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/rows.h"
#include "cpu/schedule.h"

namespace py = pybind11;

namespace {

std::map<std::string, bool> cpu_features() {
  std::map<std::string, bool> features;
  for (pipa::Isa isa : pipa::kIsas) features[pipa::isa_name(isa)] = pipa::isa_available(isa);
  return features;
}

py::dict compiled() {
  py::dict result;
  std::vector<std::string> variants;
  for (pipa::Isa isa : pipa::kIsas)
    if (pipa::isa_compiled(isa)) variants.push_back(pipa::isa_name(isa));
  result["isa"] = variants;
  result["version"] = PIPA_FAST_VERSION;
#if defined(__clang__)
  result["compiler"] = __VERSION__;
#else
  result["compiler"] = "GCC " __VERSION__;
#endif
  return result;
}

std::vector<std::tuple<int, int, int, int, int>> schedule(
    int groups, const std::function<bool(int, int)>& wanted) {
  if (groups < 0) throw std::invalid_argument("groups must not be negative");
  std::vector<std::tuple<int, int, int, int, int>> result;
  for (const pipa::Visit& visit : pipa::schedule(groups, wanted))
    result.emplace_back(visit.first, visit.second, visit.first_turn, visit.second_turn,
                        visit.round);
  return result;
}

std::vector<std::pair<int, int>> visited_pairs(int blocks, int threads) {
  if (blocks < 0 || threads < 1)
    throw std::invalid_argument("blocks must not be negative, threads must be positive");
  const pipa::Parallel parallel{threads, [](int workers, void (*body)(void*, int), void* context) {
                                  std::vector<std::thread> others;
                                  for (int worker = 1; worker < workers; ++worker)
                                    others.emplace_back(body, context, worker);
                                  body(context, 0);
                                  for (std::thread& other : others) other.join();
                                }};
  const pipa::Groups groups(blocks);
  const auto visits = pipa::schedule(groups.count(), [](int, int) { return true; });
  std::vector<std::vector<int>> of_block(blocks);  // unlocked: no two visits at a time share one
  pipa::run_visits(parallel, visits, groups, [&](int i, int j) {
    of_block[i].push_back(j);
    if (i != j) of_block[j].push_back(i);
  });
  std::vector<std::pair<int, int>> pairs;
  for (int block = 0; block < blocks; ++block)
    for (int other : of_block[block]) pairs.emplace_back(block, other);
  return pairs;
}

std::tuple<std::vector<int32_t>, std::vector<int32_t>, std::vector<int64_t>> order_by_class(
    const std::vector<int64_t>& labels, int64_t ignore_index) {
  pipa::ClassOrder order =
      pipa::order_by_class(labels.data(), static_cast<int64_t>(labels.size()),
                           [&](int64_t i) { return labels[i] != ignore_index; });
  return {order.rows, order.start, order.labels};
}

}  // namespace

PYBIND11_MODULE(_host, m) {
  m.doc() = "Host-side logic of the native kernels.";
  m.def("cpu_features", &cpu_features, "Instruction sets that this CPU and system support.");
  m.def("compiled", &compiled, "Variants in the extension, its version and its compiler.");
  m.def("best_isa", [] { return std::string(pipa::isa_name(pipa::choose_isa(""))); });
  m.def(
      "schedule", &schedule, py::arg("groups"), py::arg("wanted"),
      "Visits (first, second, turn at first, turn at second, round) of pairs of groups, in order.");
  m.def("visited_pairs", &visited_pairs, py::arg("blocks"), py::arg("threads"),
        "Each block with the others that a symmetric sweep shows it, in its order.");
  m.def("order_by_class", &order_by_class, py::arg("labels"), py::arg("ignore_index"),
        "Rows sorted by label (stable), where each class starts, and the classes' labels.");
  m.attr("BLOCK_ROWS") = pipa::kBlock;
  m.attr("MAX_GROUPS") = pipa::kMaxGroups;
}
