#include "shm_backend/held_pages.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace mapbroker::shm {
namespace {

auto IntervalOf(Run run) { return boost::icl::interval<std::uint64_t>::right_open(run.first, run.first + run.pages); }

}  // namespace

void HeldPages::Hold(Run run) {
  MutexLock lock(mutex_);
  holders_ += std::pair(IntervalOf(run), 1u);
}

void HeldPages::Drop(Run run) {
  std::vector<Run> free;
  {
    MutexLock lock(mutex_);
    const auto [begin, end] = holders_.equal_range(IntervalOf(run));
    for (auto at = begin; at != end; ++at) {
      if (at->second > 1) continue;
      const std::uint64_t first = std::max(at->first.lower(), run.first);
      const std::uint64_t past = std::min(at->first.upper(), run.first + run.pages);
      free.push_back(Run{first, past - first});
    }
    holders_ -= std::pair(IntervalOf(run), 1u);
  }
  for (const Run unheld : free) pages_.Free(unheld);
}

}  // namespace mapbroker::shm
