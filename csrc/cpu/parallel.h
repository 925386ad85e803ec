// SPDX-License-Identifier: Apache-2.0
// Threads as the caller lends them: the kernels own no pool and know no OpenMP.
#pragma once

#include <algorithm>
#include <atomic>
#include <type_traits>

namespace pipa {

struct Parallel {
  int threads;  // most workers that may run at once
  // Calls body(context, worker) for worker = 0 .. workers - 1, and returns when all have ended.
  void (*launch)(int workers, void (*body)(void* context, int worker), void* context);
};

// Calls task(i), or task(i, worker) with worker below parallel.threads, for i = 0 .. tasks - 1,
// each once, the next one free to whichever worker is free.
template <class Task>
void parallel_tasks(const Parallel& parallel, int tasks, const Task& task) {
  std::atomic<int> next{0};
  auto work = [&](int worker) {
    for (int i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
      if constexpr (std::is_invocable_v<const Task&, int, int>)
        task(i, worker);
      else
        task(i);
    }
  };
  const int workers = std::min(parallel.threads, tasks);
  if (workers <= 1) return work(0);
  using Work = decltype(work);
  parallel.launch(
      workers, [](void* context, int worker) { (*static_cast<Work*>(context))(worker); }, &work);
}

}  // namespace pipa
