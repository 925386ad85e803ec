// SPDX-License-Identifier: Apache-2.0
// The order in which pairs of row groups are visited.
//
// A symmetric sweep updates both groups of a pair at once. Each visit therefore carries its turn at
// either group, and a worker waits for the visits before it there, which the order below has made
// unlikely to be unfinished. Workers write to the one result: no private copies, so memory does not
// grow with the number of threads. And each group takes its visits in an order that depends on the
// problem only, so the result is the same, bit by bit, however many threads run.
#pragma once

#include <atomic>
#include <functional>
#include <thread>
#include <vector>

#include "cpu/parallel.h"

namespace pipa {

constexpr int kMaxGroups = 256;

struct Visit {
  int first;  // first <= second
  int second;
  int first_turn;  // visits that the group has had before
  int second_turn;
};

// Every wanted pair of 0 .. groups - 1 once, a group with itself included, ordered such that visits
// near to each other share no group.
std::vector<Visit> schedule(int groups, const std::function<bool(int first, int second)>& wanted);

// Rows blocks that make up a group, such that there are at most kMaxGroups groups.
int blocks_per_group(int blocks);

// Calls body(first, second) for all visits, each in its turn.
template <class Body>
void run_visits(const Parallel& parallel, const std::vector<Visit>& visits, int groups,
                const Body& body) {
  std::vector<std::atomic<int>> turns(groups);  // visits that each group has had
  auto wait = [&](int group, int turn) {
    while (turns[group].load(std::memory_order_acquire) != turn) std::this_thread::yield();
  };
  // Visits are begun in order and wait for earlier ones only, so some worker can always go on.
  parallel_tasks(parallel, static_cast<int>(visits.size()), [&](int index) {
    const Visit& visit = visits[index];
    wait(visit.first, visit.first_turn);
    wait(visit.second, visit.second_turn);
    body(visit.first, visit.second);
    turns[visit.first].store(visit.first_turn + 1, std::memory_order_release);
    turns[visit.second].store(visit.second_turn + 1, std::memory_order_release);
  });
}

}  // namespace pipa
