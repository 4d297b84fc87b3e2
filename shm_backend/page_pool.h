// The pool's pages for many threads: runs that are given out always hold zeros.
//
// What is freed is zeroed by a background thread before it can be given out again, so neither the one who frees nor, as
// long as clean memory is left, the one who asks waits for that.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <thread>

#include "shm_backend/mutex.h"
#include "shm_backend/run_allocator.h"

namespace mapbroker::shm {

// Thread-safe.
class PagePool {
 public:
  struct Statistics {
    // Bytes.
    std::uint64_t total = 0;
    std::uint64_t free = 0;       // clean: can be given out at once
    std::uint64_t scrubbing = 0;  // freed and not zeroed yet
    std::uint64_t largest_free_run = 0;
    std::uint64_t prefaulted = 0;  // known to be resident
  };

  // `pool` is all of the pool's memory, a whole number of pages that hold zeros; it outlives the PagePool. With
  // `prefault` its pages are made resident in the background. With `in_use` nobody knows yet what is free and what it
  // holds: nothing is given out until it is freed.
  PagePool(std::span<std::byte> pool, bool prefault, bool in_use = false);
  ~PagePool();
  PagePool(const PagePool&) = delete;
  PagePool& operator=(const PagePool&) = delete;

  // A run of `pages` pages of zeros, the caller's until Free. When no clean run is long enough the caller helps with
  // the scrubbing; nullopt when that does not help either. REQUIRES: pages > 0.
  std::optional<Run> Allocate(std::uint64_t pages);

  // Gives back a run or any part of one, whatever it holds. Never waits for memory to be zeroed.
  void Free(Run run);

  Statistics statistics() const;

  // Returns when nothing waits to be zeroed.
  void WaitUntilIdle();

 private:
  void Work();
  void ScrubOne() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void PrefaultOne() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::span<std::byte> pool_;
  mutable Mutex mutex_;
  CondVar changed_;
  RunAllocator runs_ ABSL_GUARDED_BY(mutex_);
  std::deque<Run> dirty_ ABSL_GUARDED_BY(mutex_);
  std::uint64_t dirty_pages_ ABSL_GUARDED_BY(mutex_) = 0;  // in dirty_ and being zeroed
  unsigned scrubbing_ ABSL_GUARDED_BY(mutex_) = 0;         // threads that zero a run now
  std::size_t prefaulted_ ABSL_GUARDED_BY(mutex_) = 0;     // bytes from the start of the pool
  bool prefault_ ABSL_GUARDED_BY(mutex_);
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread worker_;
};

}  // namespace mapbroker::shm
