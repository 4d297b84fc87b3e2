#include "shm_backend/page_pool.h"

#include <sys/mman.h>
#include <sys/resource.h>

#include <algorithm>
#include <cstring>

#include "shm_backend/failure_point.h"

namespace mapbroker::shm {
namespace {

// Zeroed or made resident between two looks at what is more urgent: about a millisecond of work.
constexpr std::uint64_t kSlicePages = 2048;

// The background thread gives way to everything that serves a request.
constexpr int kNice = 10;

}  // namespace

PagePool::PagePool(std::span<std::byte> pool, bool prefault, bool in_use)
    : pool_(pool), runs_(pool.size() / kPageSize), prefault_(prefault) {
  if (in_use) runs_.Allocate(runs_.total_pages());
  worker_ = std::thread([this] { Work(); });
}

PagePool::~PagePool() {
  {
    MutexLock lock(mutex_);
    stop_ = true;
    changed_.NotifyAll();
  }
  worker_.join();
}

std::optional<Run> PagePool::Allocate(std::uint64_t pages) {
  if (FailAt(Point::kAllocate)) return std::nullopt;
  MutexLock lock(mutex_);
  for (;;) {
    if (const std::optional<Run> run = runs_.Allocate(pages)) return run;
    if (!dirty_.empty()) {
      ScrubOne();
    } else if (scrubbing_ > 0) {
      changed_.Wait(mutex_);
    } else {
      return std::nullopt;
    }
  }
}

void PagePool::Free(Run run) {
  MutexLock lock(mutex_);
  dirty_.push_back(run);
  dirty_pages_ += run.pages;
  changed_.NotifyAll();
}

PagePool::Statistics PagePool::statistics() const {
  MutexLock lock(mutex_);
  return Statistics{.total = pool_.size(),
                    .free = runs_.free_pages() * kPageSize,
                    .scrubbing = dirty_pages_ * kPageSize,
                    .largest_free_run = runs_.largest_free_run() * kPageSize,
                    .prefaulted = prefaulted_};
}

void PagePool::WaitUntilIdle() {
  MutexLock lock(mutex_);
  while (dirty_pages_ > 0) changed_.Wait(mutex_);
}

void PagePool::Work() {
  setpriority(PRIO_PROCESS, 0, kNice);  // of this thread alone, on Linux
  MutexLock lock(mutex_);
  while (!stop_) {
    if (!dirty_.empty()) {
      ScrubOne();
    } else if (prefault_) {
      PrefaultOne();
    } else {
      changed_.Wait(mutex_);
    }
  }
}

void PagePool::ScrubOne() {
  Run slice = dirty_.front();
  if (slice.pages > kSlicePages) {
    dirty_.front() = {slice.first + kSlicePages, slice.pages - kSlicePages};
    slice.pages = kSlicePages;
  } else {
    dirty_.pop_front();
  }
  ++scrubbing_;
  mutex_.Unlock();
  std::memset(pool_.data() + slice.first * kPageSize, 0, slice.pages * kPageSize);
  mutex_.Lock();
  --scrubbing_;
  dirty_pages_ -= slice.pages;
  runs_.Free(slice);
  changed_.NotifyAll();
}

void PagePool::PrefaultOne() {
  const std::size_t begin = prefaulted_;
  const std::size_t length = std::min<std::size_t>(kSlicePages * kPageSize, pool_.size() - begin);
  mutex_.Unlock();
  // Does not change what the pages hold, so it may run beside their owners.
  const bool populated = !FailAt(Point::kPrefault) && madvise(pool_.data() + begin, length, MADV_POPULATE_WRITE) == 0;
  mutex_.Lock();
  if (populated) prefaulted_ += length;
  // A kernel that cannot do it (before 5.14) leaves the pages to their first users.
  if (!populated || prefaulted_ == pool_.size()) prefault_ = false;
}

}  // namespace mapbroker::shm
