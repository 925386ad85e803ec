// SPDX-License-Identifier: Apache-2.0
#include "cpu/schedule.h"

#include <algorithm>
#include <cstdint>

namespace pipa {
namespace {

// First-fit colouring: the earliest round in which neither group is busy yet. Within a round no two
// visits share a group.
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

std::vector<Visit> schedule(int groups, const std::function<bool(int, int)>& wanted) {
  std::vector<std::vector<Visit>> rounds;
  Colouring colouring(groups);
  auto add = [&](int a, int b) {
    if (a > b) std::swap(a, b);
    if (!wanted(a, b)) return;
    const int round = colouring.place(a, b);
    if (round >= static_cast<int>(rounds.size())) rounds.resize(round + 1);
    rounds[round].push_back({a, b, 0, 0, round});
  };
  // Round-robin tournament (circle method): visited in this order, first fit needs no more rounds
  // than the tournament has, and fewer where pairs are left out.
  const int players = groups + groups % 2;
  for (int turn = 0; turn + 1 < players; ++turn) {
    if (players == groups) add(turn, players - 1);
    for (int k = 1; k < players / 2; ++k)
      add((turn + k) % (players - 1), (turn - k + players - 1) % (players - 1));
  }
  for (int group = 0; group < groups; ++group) add(group, group);

  std::vector<Visit> visits;
  std::vector<int> turns(groups, 0);
  for (const std::vector<Visit>& round : rounds)
    for (Visit visit : round) {
      visit.first_turn = turns[visit.first]++;
      visit.second_turn = visit.first == visit.second ? visit.first_turn : turns[visit.second]++;
      visits.push_back(visit);
    }
  return visits;
}

std::vector<Share> shares_of(const std::vector<Visit>& visits, const Groups& groups) {
  std::vector<Share> shares;
  for (size_t begin = 0, end; begin < visits.size(); begin = end) {
    for (end = begin; end < visits.size() && visits[end].round == visits[begin].round;) ++end;
    for (int member = 0; member < groups.size; ++member)
      for (size_t v = begin; v < end; ++v)
        if (member < groups.members(visits[v].first)) shares.push_back({visits[v], member});
  }
  return shares;
}

// Four blocks are enough to hide what the fifth would: but few groups keep few workers busy, and
// many take long to put in order.
Groups::Groups(int blocks)
    : blocks(blocks),
      size(std::max(std::clamp(blocks / 16, 1, 4), (blocks + kMaxGroups - 1) / kMaxGroups)) {}

}  // namespace pipa
