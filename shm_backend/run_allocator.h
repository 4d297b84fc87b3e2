// Gives out contiguous runs of pages, best fit, from bookkeeping that lies outside the pool.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/btree_set.h"

namespace mapbroker::shm {

// A contiguous run of pages; page numbers count from the start of the pool.
struct Run {
  std::uint64_t first = 0;
  std::uint64_t pages = 0;
  friend bool operator==(const Run&, const Run&) = default;
};

// Every operation is O(log n) in the number of free runs. Never refuses a request while a free run is long enough.
// Not thread-safe.
class RunAllocator {
 public:
  // All `pages` pages are free.
  explicit RunAllocator(std::uint64_t pages);

  // The caller owns the run until Free. nullopt: no free run has that many pages. REQUIRES: pages > 0.
  std::optional<Run> Allocate(std::uint64_t pages);

  // Gives back a run, or any part of one, and joins it with its free neighbours. REQUIRES: every page of it is
  // allocated; violating this stops the program.
  void Free(Run run);

  std::uint64_t total_pages() const;
  std::uint64_t free_pages() const;
  std::uint64_t largest_free_run() const;  // pages

  // Checks every structure against the others; the first contradiction as a sentence, empty if there is none. O(pages).
  std::string Validate() const;
};

}  // namespace mapbroker::shm
