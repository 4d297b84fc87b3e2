#include "shm_backend/run_allocator.h"

#include <cstdio>
#include <new>

#include "absl/strings/str_cat.h"

namespace mapbroker::shm {
namespace {

// Pages; runs of at least 1 MiB come from the high end of the free run that fits best, shorter ones from the low end,
// so that what is long-lived and small gathers on one side and long runs stay whole.
constexpr std::uint64_t kLarge = 256;

[[noreturn]] void Die(const char* what, std::uint64_t first, std::uint64_t pages) {
  std::fprintf(stderr, "run allocator: %s (page %llu, %llu pages)\n", what, static_cast<unsigned long long>(first),
               static_cast<unsigned long long>(pages));
  std::abort();
}

}  // namespace

RunAllocator::RunAllocator(std::uint64_t pages)
    : total_(pages), ends_(static_cast<std::uint32_t*>(std::calloc(pages, sizeof(std::uint32_t)))) {
  if (pages >> kPlaceBits != 0) Die("the pool has too many pages", 0, pages);
  if (ends_ == nullptr) throw std::bad_alloc();
  if (pages > 0) Insert({0, pages});
}

std::optional<Run> RunAllocator::Allocate(std::uint64_t pages) {
  if (pages > total_) return std::nullopt;
  const auto best = by_length_.lower_bound(pages << kPlaceBits);
  if (best == by_length_.end()) return std::nullopt;
  const Run whole = Unpack(*best);
  Erase(whole);
  const std::uint64_t rest = whole.pages - pages;
  if (pages >= kLarge) {
    if (rest > 0) Insert({whole.first, rest});
    return Run{whole.first + rest, pages};
  }
  if (rest > 0) Insert({whole.first + pages, rest});
  return Run{whole.first, pages};
}

void RunAllocator::Free(Run run) {
  const std::uint64_t end = run.first + run.pages;
  if (run.pages == 0 || run.pages > total_ || end > total_)
    Die("freed run lies outside the pool", run.first, run.pages);
  if (ends_[run.first] != 0 || ends_[end - 1] != 0) Die("run is freed twice", run.first, run.pages);
  if (run.first > 0 && ends_[run.first - 1] != 0) {
    const Run before{run.first - ends_[run.first - 1], ends_[run.first - 1]};
    Erase(before);
    run = {before.first, before.pages + run.pages};
  }
  if (end < total_ && ends_[end] != 0) {
    const Run after{end, ends_[end]};
    Erase(after);
    run.pages += after.pages;
  }
  Insert(run);
}

std::uint64_t RunAllocator::largest_free_run() const {
  return by_length_.empty() ? 0 : Unpack(*by_length_.rbegin()).pages;
}

void RunAllocator::Insert(Run run) {
  by_length_.insert(Pack(run));
  ends_[run.first] = ends_[run.first + run.pages - 1] = static_cast<std::uint32_t>(run.pages);
  free_ += run.pages;
}

void RunAllocator::Erase(Run run) {
  by_length_.erase(Pack(run));
  ends_[run.first] = ends_[run.first + run.pages - 1] = 0;
  free_ -= run.pages;
}

std::string RunAllocator::Validate() const {
  std::uint64_t free = 0, runs = 0;
  bool after_free_run = false;
  for (std::uint64_t page = 0; page < total_;) {
    const std::uint64_t pages = ends_[page];
    if (pages == 0) {
      after_free_run = false;
      ++page;
      continue;
    }
    if (after_free_run) return absl::StrCat("free runs meet at page ", page, " and are not joined");
    if (page + pages > total_ || ends_[page + pages - 1] != pages) {
      return absl::StrCat("the free run at page ", page, " has no end");
    }
    if (!by_length_.contains(Pack({page, pages})))
      return absl::StrCat("the free run at page ", page, " is not indexed");
    for (std::uint64_t inner = page + 1; inner + 1 < page + pages; ++inner) {
      if (ends_[inner] != 0) return absl::StrCat("page ", inner, " inside a free run is marked as its end");
    }
    free += pages;
    ++runs;
    page += pages;
    after_free_run = true;
  }
  if (runs != by_length_.size()) return "a run is indexed that is not free";
  if (free != free_) return "the count of free pages is wrong";
  return "";
}

}  // namespace mapbroker::shm
