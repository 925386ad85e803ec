// SPDX-License-Identifier: Apache-2.0
// pipa_fast._host: what was compiled, what this CPU has, and the kernels' host-side logic for
// tests.
#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <stdexcept>
#include <thread>

#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/rows.h"
#include "cpu/schedule.h"
#include "cuda/schedule.h"

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

// ---- csrc/cuda/schedule.h; ranges of columns are pairs (low, high) ----

using Pair = std::pair<int, int>;
using Ints = std::vector<int>;

pipa::cuda::Range range_of(Pair pair) { return {pair.first, pair.second}; }
Pair pair_of(pipa::cuda::Range range) { return {range.low, range.high}; }

void require(bool fits, const char* what) {
  if (!fits) throw std::invalid_argument(what);
}

void require_rows(const Ints& first, const Ints& past, int begin, int end, int live) {
  require(0 <= begin && begin < live && begin < end, "begin must be a row that takes part");
  require(live <= static_cast<int>(first.size()) && first.size() == past.size(),
          "first and past must have a number for each row");
}

Pair own_range(const Ints& first, const Ints& past, bool all_form, int begin, int end, int live) {
  require_rows(first, past, begin, end, live);
  return pair_of(pipa::cuda::own_range(first.data(), past.data(), all_form, begin, end, live));
}

Pair shared_range(const Ints& first, const Ints& past, int begin, int end, int live) {
  require_rows(first, past, begin, end, live);
  return pair_of(pipa::cuda::shared_range(first.data(), past.data(), begin, end, live));
}

template <int kCluster>
std::vector<Pair> apart_tiles_of(int rows, int columns, int block, int blocks, Pair offsets,
                                 const std::vector<Pair>& own, int live) {
  const int member = block % kCluster;
  pipa::cuda::ApartTiles<kCluster> tiles = {
      rows, columns, block - member, blocks, range_of(offsets), {}, live};
  std::transform(own.begin(), own.end(), tiles.own, range_of);
  std::vector<Pair> result;
  for (int i = tiles.next(0); i < tiles.end(); i = tiles.next(i + 1))
    if (tiles.meets(i, member)) result.emplace_back(tiles.shift(i, member), tiles.column(i));
  return result;
}

// Of each tile that a program of the sum apart meets with a block: its shift and its first column.
// own: of each of the cluster's blocks.
std::vector<Pair> apart_tiles(int rows, int columns, int block, int blocks, Pair offsets,
                              const std::vector<Pair>& own, int live) {
  require(columns > 0 && rows > 0 && rows % columns == 0, "rows must be a multiple of columns");
  require(0 <= block && block < blocks, "block must be one of blocks");
  require(own.size() == 1 || own.size() == pipa::cuda::kMostCluster, "a cluster has 1 or 2 blocks");
  return own.size() == 1 ? apart_tiles_of<1>(rows, columns, block, blocks, offsets, own, live)
                         : apart_tiles_of<2>(rows, columns, block, blocks, offsets, own, live);
}

// The first columns of the tiles that a part of a block's programs meets.
Ints own_tiles(Pair own, Pair shared, int unit, int columns, int live, int part) {
  require(columns > 0 && unit > 0 && unit % columns == 0, "unit must be a multiple of columns");
  require(0 <= part && part < pipa::cuda::kParts, "part must be one of PARTS");
  const auto tiles = pipa::cuda::own_tiles(range_of(own), range_of(shared), unit, columns, live);
  Ints result;
  for (int at = tiles.first(part); at < tiles.end; at = tiles.next(at))
    result.push_back(tiles.column(at));
  return result;
}

Ints key_tiles(int columns, Pair share, Pair shared) {
  require(columns > 0, "columns must be positive");
  Ints result;
  auto next = [&](int column) {
    return pipa::cuda::next_keys(column, columns, range_of(share), range_of(shared));
  };
  for (int column = next(share.first); column < share.second; column = next(column + columns))
    result.push_back(column);
  return result;
}

void bind_cuda(py::module_ m) {
  using namespace pipa::cuda;
  m.def("blocks_of", &blocks_of, py::arg("n"), py::arg("rows"));
  m.def("own_range", &::own_range, py::arg("first"), py::arg("past"), py::arg("all_form"),
        py::arg("begin"), py::arg("end"), py::arg("live"),
        "Columns some of which do not count in the denominators of rows begin … end.");
  m.def("shared_range", &::shared_range, py::arg("first"), py::arg("past"), py::arg("begin"),
        py::arg("end"), py::arg("live"), "Columns of the class of each of rows begin … end.");
  m.def("own_tiles", &::own_tiles, py::arg("own"), py::arg("shared"), py::arg("unit"),
        py::arg("columns"), py::arg("live"), py::arg("part"),
        "First columns of the tiles that a part meets of a block's own columns, in whole units. "
        "shared: columns of the class of each of its rows, where such tiles are left out.");
  m.def(
      "meets", [](Pair range, int begin, int end) { return range_of(range).meets(begin, end); },
      py::arg("range"), py::arg("begin"), py::arg("end"));
  m.def(
      "holds", [](Pair range, int column) { return range_of(range).holds(column); },
      py::arg("range"), py::arg("column"));
  m.def("in_denominator", &in_denominator, py::arg("all_form"), py::arg("same"), py::arg("row"),
        py::arg("column"), py::arg("live"));
  m.def("is_positive", &is_positive, py::arg("same"), py::arg("row"), py::arg("column"));
  m.def("is_negative", &is_negative, py::arg("same"), py::arg("column"), py::arg("live"));
  m.def("past_offset", &past_offset, py::arg("blocks"), py::arg("cluster"));
  m.def(
      "offsets_of",
      [](int program, int first, int past) { return pair_of(offsets_of(program, first, past)); },
      py::arg("program"), py::arg("first_offset"), py::arg("past_offset"));
  m.def("apart_tiles", &apart_tiles, py::arg("rows"), py::arg("columns"), py::arg("block"),
        py::arg("blocks"), py::arg("offsets"), py::arg("own"), py::arg("live"),
        "Shift and first column of each tile that a program's block meets, in order. own: ranges "
        "of the blocks of its cluster.");
  m.def(
      "slots_of",
      [](int64_t n, int rows, int columns) {
        const Slots slots = slots_of(n, rows, columns);
        return Pair{slots.width, slots.count};
      },
      py::arg("n"), py::arg("rows"), py::arg("columns"), "Width and count of the slots.");
  m.def("slot_of_shift", &slot_of_shift, py::arg("shift"), py::arg("first_offset"));
  m.def("slot_of_program", &slot_of_program, py::arg("program"), py::arg("width"));
  m.def("slot_of_part", &slot_of_part, py::arg("part"), py::arg("width"));
  m.def(
      "keys_of",
      [](int split, int splits, int keys, int columns) {
        require(splits > 0 && columns > 0, "splits and columns must be positive");
        return pair_of(keys_of(split, splits, keys, columns));
      },
      py::arg("split"), py::arg("splits"), py::arg("keys"), py::arg("columns"));
  m.def("key_tiles", &key_tiles, py::arg("columns"), py::arg("share"), py::arg("shared"),
        "First keys of the tiles of a share that a block meets, in order.");
  m.def("fragment_row", &fragment_row, py::arg("lane"), py::arg("band"), py::arg("half"));
  m.def("fragment_column", &fragment_column, py::arg("lane"), py::arg("eight"), py::arg("place"));
  m.def("swapped", &swapped, py::arg("row"), py::arg("piece"), "Offset of a piece in its row.");
  m.def(
      "piece_at", [](int row, int half, int pair) { return Pieces(row, half).at(pair); },
      py::arg("row"), py::arg("half"), py::arg("pair"), "The same, as a lane finds pairs of them.");
  m.attr("RUN") = kRun;
  m.attr("MOST_CLUSTER") = kMostCluster;
  m.attr("PARTS") = kParts;
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
  bind_cuda(m.def_submodule("cuda", "csrc/cuda/schedule.h; ranges are pairs (low, past)."));
}
