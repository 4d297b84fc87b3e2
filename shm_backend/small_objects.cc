#include "shm_backend/small_objects.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdlib>
#include <cstring>

#include "shm_backend/failure_point.h"

namespace mapbroker::shm {
namespace {

// Bytes. Powers of two and one step between where most small requests lie; 64 so that no two objects share a cache line
// and a page's objects fit into one word of bits.
constexpr std::array<std::uint32_t, 8> kSizes{64, 128, 192, 256, 512, 1024, 2048, kPageSize};

constexpr std::uint64_t AllUsed(std::uint32_t size) {
  const std::uint64_t objects = kPageSize / size;
  return objects == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << objects) - 1;
}

}  // namespace

std::optional<SmallObjects::Object> SmallObjects::Allocate(std::uint64_t bytes, std::uint32_t owner) {
  if (FailAt(Point::kAllocateSmall)) return std::nullopt;
  const std::uint32_t size = *std::lower_bound(kSizes.begin(), kSizes.end(), bytes);
  MutexLock lock(mutex_);
  auto& with_room = with_room_[Kind{owner, size}];
  if (with_room.empty()) {
    const std::optional<Run> page = pages_.Allocate(1);
    if (!page) {
      with_room_.erase(Kind{owner, size});
      return std::nullopt;
    }
    slabs_[page->first] = Slab{.owner = owner, .size = size};
    with_room.insert(page->first);
  }
  const std::uint64_t page = *with_room.begin();
  Slab& slab = slabs_.at(page);
  const auto slot = static_cast<std::uint64_t>(std::countr_one(slab.used));
  slab.used |= std::uint64_t{1} << slot;
  if (slab.used == AllUsed(size)) with_room.erase(with_room.begin());
  if (with_room.empty()) with_room_.erase(Kind{owner, size});
  return Object{page * kPageSize + slot * size, size};
}

bool SmallObjects::Restore(std::uint64_t start, std::uint64_t size, std::uint32_t owner) {
  if (std::find(kSizes.begin(), kSizes.end(), size) == kSizes.end() || start % kPageSize % size != 0) return false;
  const std::uint64_t page = start / kPageSize, bit = std::uint64_t{1} << (start % kPageSize / size);
  MutexLock lock(mutex_);
  const auto [found, is_new] = slabs_.try_emplace(page);
  Slab& slab = found->second;
  if (is_new) slab = Slab{.owner = owner, .size = static_cast<std::uint32_t>(size)};
  if (slab.owner != owner || slab.size != size || (slab.used & bit) != 0) return false;
  slab.used |= bit;
  const Kind kind{slab.owner, slab.size};
  if (slab.used != AllUsed(slab.size)) {
    with_room_[kind].insert(page);
  } else if (const auto with_room = with_room_.find(kind); with_room != with_room_.end()) {
    with_room->second.erase(page);
    if (with_room->second.empty()) with_room_.erase(with_room);
  }
  return true;
}

void SmallObjects::CleanRestored() {
  MutexLock lock(mutex_);
  for (const auto& [page, slab] : slabs_) {
    for (std::uint64_t slot = 0; slot < kPageSize / slab.size; ++slot) {
      if ((slab.used >> slot & 1) == 0) std::memset(pool_.data() + page * kPageSize + slot * slab.size, 0, slab.size);
    }
  }
}

std::uint32_t SmallObjects::OwnerOf(std::uint64_t start) const {
  MutexLock lock(mutex_);
  return slabs_.at(start / kPageSize).owner;
}

std::vector<std::uint64_t> SmallObjects::Pages() const {
  std::vector<std::uint64_t> pages;
  MutexLock lock(mutex_);
  for (const auto& [page, slab] : slabs_) pages.push_back(page);
  return pages;
}

void SmallObjects::Free(std::uint64_t start) {
  const std::uint64_t page = start / kPageSize;
  MutexLock lock(mutex_);
  const auto found = slabs_.find(page);
  if (found == slabs_.end()) std::abort();  // not ours: the caller's books are wrong
  Slab& slab = found->second;
  const std::uint64_t bit = std::uint64_t{1} << (start % kPageSize / slab.size);
  if (start % kPageSize % slab.size != 0 || (slab.used & bit) == 0) std::abort();
  std::memset(pool_.data() + start, 0, slab.size);
  slab.used &= ~bit;
  const Kind kind{slab.owner, slab.size};
  if (slab.used != 0) {
    with_room_[kind].insert(page);
    return;
  }
  slabs_.erase(found);
  if (const auto with_room = with_room_.find(kind); with_room != with_room_.end()) {
    with_room->second.erase(page);
    if (with_room->second.empty()) with_room_.erase(with_room);
  }
  pages_.Free(Run{page, 1});
}

}  // namespace mapbroker::shm
