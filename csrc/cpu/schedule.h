// SPDX-License-Identifier: Apache-2.0
// The order in which pairs of row blocks are visited.
//
// A symmetric sweep updates both blocks of a pair at once. Each visit therefore has its turn at
// either block, and a worker waits for the visits before it there, which the order below has made
// unlikely to be unfinished. Workers write to the one result: no private copies, so memory does not
// grow with the number of threads. And each block takes its visits in an order that depends on the
// problem only, so the result is the same, bit by bit, however many threads run.
//
// Blocks stand in groups. A worker takes one block of a group through all blocks of another: what
// belongs to that one stays in its second cache meanwhile.
#pragma once

#include <algorithm>
#include <atomic>
#include <functional>
#include <thread>
#include <vector>

#include "cpu/parallel.h"

namespace pipa {

constexpr int kMaxGroups = 256;

// Blocks 0 .. blocks - 1 in groups of `size`; the last group may have fewer.
struct Groups {
  int blocks;
  int size;

  explicit Groups(int blocks);
  int count() const { return (blocks + size - 1) / size; }
  int begin(int group) const { return group * size; }
  int members(int group) const { return std::min(size, blocks - begin(group)); }
};

// Of all blocks of two groups with each other.
struct Visit {
  int first;  // first <= second
  int second;
  int first_turn;  // visits that the group has had before
  int second_turn;
  int round;  // within one, no two visits share a group
};

// Every wanted pair of 0 .. groups - 1 once, a group with itself included, by rounds.
std::vector<Visit> schedule(int groups, const std::function<bool(int first, int second)>& wanted);

// What a worker takes at a time: the visits of one block of the first group.
struct Share {
  Visit visit;
  int member;  // of the first group
};

// All shares of a round before those of the next, and within it one of each visit by turns: a share
// follows its visit's previous one through the second group, block by block.
std::vector<Share> shares_of(const std::vector<Visit>& visits, const Groups& groups);

// Calls body(i, j) for all pairs of blocks i <= j of all visits, each in its turn.
template <class Body>
void run_visits(const Parallel& parallel, const std::vector<Visit>& visits, const Groups& groups,
                const Body& body) {
  // Of each block: a visit is worth `size` turns, its k-th pair there the k-th of them.
  std::vector<std::atomic<int>> turns(groups.blocks);
  auto wait = [&](int block, int turn) {
    while (turns[block].load(std::memory_order_acquire) != turn) std::this_thread::yield();
  };
  auto pass = [&](int block, int visit_turn, int pair, int pairs) {
    const int turn =
        pair + 1 < pairs ? visit_turn * groups.size + pair + 1 : (visit_turn + 1) * groups.size;
    turns[block].store(turn, std::memory_order_release);
  };
  // Shares are begun in order and wait for earlier ones only, so some worker can always go on.
  const std::vector<Share> shares = shares_of(visits, groups);
  parallel_tasks(parallel, static_cast<int>(shares.size()), [&](int index) {
    const Visit& visit = shares[index].visit;
    const int row = shares[index].member, i = groups.begin(visit.first) + row;
    const int rows = groups.members(visit.first), columns = groups.members(visit.second);
    for (int column = visit.first == visit.second ? row : 0; column < columns; ++column) {
      const int j = groups.begin(visit.second) + column;
      wait(i, visit.first_turn * groups.size + column);
      wait(j, visit.second_turn * groups.size + row);
      body(i, j);
      pass(i, visit.first_turn, column, columns);
      if (i != j) pass(j, visit.second_turn, row, rows);
    }
  });
}

}  // namespace pipa
