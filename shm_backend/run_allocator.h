// Gives out contiguous runs of pages, best fit, from bookkeeping that lies outside the pool.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>

#include "absl/container/btree_set.h"

namespace mapbroker::shm {

// Unit of the pool, in bytes: the kernel's PAGE_SIZE, which semantics.md fixes.
inline constexpr std::uint64_t kPageSize = 4096;

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
  // All `pages` pages are free. REQUIRES: pages < 2^32 (16 TiB).
  explicit RunAllocator(std::uint64_t pages);

  // The caller owns the run until Free. nullopt: no free run has that many pages. REQUIRES: pages > 0.
  std::optional<Run> Allocate(std::uint64_t pages);

  // Gives back a run, or any part of one, and joins it with its free neighbours. REQUIRES: every page of it is
  // allocated; a run that begins or ends like a free one, or lies outside the pool, stops the program.
  void Free(Run run);

  std::uint64_t total_pages() const { return total_; }
  std::uint64_t free_pages() const { return free_; }
  std::uint64_t largest_free_run() const;  // pages

  // Checks every structure against the others; the first contradiction as a sentence, empty if there is none. O(pages).
  std::string Validate() const;

 private:
  // A free run as one number, ordered by length, then by place: the first that is not less than a wanted length is the
  // best fit at the lowest address.
  using Packed = std::uint64_t;
  static constexpr unsigned kPlaceBits = 32;
  static Packed Pack(Run run) { return run.pages << kPlaceBits | run.first; }
  static Run Unpack(Packed packed) { return {packed & ((Packed{1} << kPlaceBits) - 1), packed >> kPlaceBits}; }

  void Insert(Run run);
  void Erase(Run run);

  struct FreeDeleter {
    void operator()(std::uint32_t* memory) const { std::free(memory); }
  };

  std::uint64_t total_;
  std::uint64_t free_ = 0;
  absl::btree_set<Packed> by_length_;
  // For the first and last page of every free run its length, else 0. From calloc, so that only what is used is
  // resident.
  std::unique_ptr<std::uint32_t[], FreeDeleter> ends_;
};

}  // namespace mapbroker::shm
