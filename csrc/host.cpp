// SPDX-License-Identifier: Apache-2.0
// pipa_fast._host: what was compiled, what this CPU has, and the kernels' host-side logic for
// tests.
#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>

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

std::vector<std::tuple<int, int, int, int>> schedule(int groups,
                                                     const std::function<bool(int, int)>& wanted) {
  if (groups < 0) throw std::invalid_argument("groups must not be negative");
  std::vector<std::tuple<int, int, int, int>> result;
  for (const pipa::Visit& visit : pipa::schedule(groups, wanted))
    result.emplace_back(visit.first, visit.second, visit.first_turn, visit.second_turn);
  return result;
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
  m.def("schedule", &schedule, py::arg("groups"), py::arg("wanted"),
        "Visits (first, second, turn at first, turn at second) of pairs of groups, in order.");
  m.def("order_by_class", &order_by_class, py::arg("labels"), py::arg("ignore_index"),
        "Rows sorted by label (stable), where each class starts, and the classes' labels.");
  m.attr("BLOCK_ROWS") = pipa::kBlock;
  m.attr("MAX_GROUPS") = pipa::kMaxGroups;
}
