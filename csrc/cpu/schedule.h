// SPDX-License-Identifier: Apache-2.0
// The order in which pairs of row groups are visited.
//
// A symmetric sweep updates both groups of a pair at once. Pairs are therefore coloured into rounds
// in which no group occurs twice: within a round every worker writes rows of its own, with neither
// locks nor private copies of the result, so memory does not grow with the number of threads. The
// rounds depend on the problem only, and so do the results, bit by bit, however many threads run.
#pragma once

#include <functional>
#include <vector>

namespace pipa {

struct Pair {
  int first;  // first <= second
  int second;
};

struct Rounds {
  std::vector<Pair> pairs;  // round by round
  std::vector<int> start;   // [rounds + 1] offsets into pairs
};

// Every wanted pair of 0 .. groups - 1 once, a group with itself included.
Rounds schedule(int groups, const std::function<bool(int first, int second)>& wanted);

// Blocks that make up a group, such that there are at most `kMaxGroups` groups.
int blocks_per_group(int blocks);
constexpr int kMaxGroups = 256;

}  // namespace pipa
