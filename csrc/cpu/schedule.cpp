// SPDX-License-Identifier: Apache-2.0
#include "cpu/schedule.h"

#include <algorithm>
#include <cstdint>

namespace pipa {
namespace {

// First-fit colouring: the earliest round in which neither group is busy yet.
class Colouring {
 public:
  explicit Colouring(int groups) : words_((2 * groups) / 64 + 1), busy_(groups * words_, 0) {}

  int place(int first, int second) {
    uint64_t* a = &busy_[first * words_];
    uint64_t* b = &busy_[second * words_];
    // A pair meets fewer than 2 * groups others, so a round below that is always free.
    int word = 0;
    while (~(a[word] | b[word]) == 0) ++word;
    const int bit = __builtin_ctzll(~(a[word] | b[word]));
    a[word] |= uint64_t{1} << bit;
    b[word] |= uint64_t{1} << bit;
    return 64 * word + bit;
  }

 private:
  size_t words_;                // per group
  std::vector<uint64_t> busy_;  // [groups, words]
};

}  // namespace

Rounds schedule(int groups, const std::function<bool(int, int)>& wanted) {
  std::vector<Pair> pairs;
  std::vector<int> round;
  Colouring colouring(groups);
  auto add = [&](int a, int b) {
    if (a > b) std::swap(a, b);
    if (!wanted(a, b)) return;
    pairs.push_back({a, b});
    round.push_back(colouring.place(a, b));
  };
  // Round-robin tournament (circle method): visited in this order, first fit needs no more rounds
  // than the tournament has, and fewer where pairs are left out.
  const int players = groups + groups % 2;
  for (int turn = 0; turn + 1 < players; ++turn) {
    if (turn < groups && players - 1 < groups) add(turn, players - 1);
    for (int k = 1; k < players / 2; ++k) {
      const int a = (turn + k) % (players - 1), b = (turn - k + players - 1) % (players - 1);
      add(a, b);
    }
  }
  for (int group = 0; group < groups; ++group) add(group, group);

  Rounds rounds;
  const int count = round.empty() ? 0 : 1 + *std::max_element(round.begin(), round.end());
  rounds.start.assign(count + 1, 0);
  for (int r : round) ++rounds.start[r + 1];
  for (int r = 0; r < count; ++r) rounds.start[r + 1] += rounds.start[r];
  rounds.pairs.resize(pairs.size());
  std::vector<int> next(rounds.start.begin(), rounds.start.end());
  for (size_t i = 0; i < pairs.size(); ++i) rounds.pairs[next[round[i]]++] = pairs[i];
  return rounds;
}

int blocks_per_group(int blocks) { return std::max(1, (blocks + kMaxGroups - 1) / kMaxGroups); }

}  // namespace pipa
