// Memory shorter than a page, packed into pages by size classes, each page for one owner only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "absl/container/btree_set.h"
#include "absl/container/flat_hash_map.h"
#include "shm_backend/mutex.h"
#include "shm_backend/page_pool.h"

namespace mapbroker::shm {

// Thread-safe. Bookkeeping lies outside the pool.
class SmallObjects {
 public:
  struct Object {
    std::uint64_t start = 0;  // bytes from the start of the pool
    std::uint64_t size = 0;   // bytes of its size class
  };

  // Both outlive it; `pool` is where this process has the pool's bytes.
  SmallObjects(PagePool& pages, std::span<std::byte> pool) : pages_(pages), pool_(pool) {}

  // At least `bytes` bytes of zeros on a page that holds objects of `owner` only; nullopt when no page is free.
  // REQUIRES: 0 < bytes < kPageSize.
  std::optional<Object> Allocate(std::uint64_t bytes, std::uint32_t owner);

  // An object that was given out by another SmallObjects on the same pool, on a page of which the pool knows. False: it
  // contradicts what is there.
  bool Restore(std::uint64_t start, std::uint64_t size, std::uint32_t owner);
  // After all of them: zeroes what is free on their pages, since nobody knows what it holds.
  void CleanRestored();
  // Whose the page is. REQUIRES: an object starts at `start`.
  std::uint32_t OwnerOf(std::uint64_t start) const;
  // The pages that hold objects.
  std::vector<std::uint64_t> Pages() const;

  // Zeroes the object and gives it back. REQUIRES: it starts at `start`.
  void Free(std::uint64_t start);

 private:
  struct Slab {
    std::uint32_t owner = 0;
    std::uint32_t size = 0;  // bytes of an object
    std::uint64_t used = 0;  // a bit an object
  };
  // Owner and size, by which a page with room is found.
  using Kind = std::pair<std::uint32_t, std::uint32_t>;

  PagePool& pages_;
  const std::span<std::byte> pool_;
  mutable Mutex mutex_;
  absl::flat_hash_map<std::uint64_t, Slab> slabs_ ABSL_GUARDED_BY(mutex_);  // by page
  absl::flat_hash_map<Kind, absl::btree_set<std::uint64_t>> with_room_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace mapbroker::shm
