// The run allocator against boost::interprocess::rbtree_best_fit on the same traces, and against a buddy with trimming
// on how full the pool gets.
#include <sys/mman.h>

#include <boost/interprocess/mem_algo/rbtree_best_fit.hpp>
#include <boost/interprocess/sync/mutex_family.hpp>
#include <chrono>
#include <cmath>
#include <random>
#include <set>

#include "bench/report.h"
#include "shm_backend/run_allocator.h"

namespace mapbroker::bench {
namespace {

namespace ipc = boost::interprocess;

constexpr std::uint64_t kPoolPages = std::uint64_t{4} << 18;  // 4 GiB
constexpr std::uint64_t kLargest = 64 << 8;                   // 64 MiB in pages
constexpr int kOperations = 200'000;
constexpr int kRounds = 7;

// One operation: an allocation of `pages`, or the freeing of what operation `frees` allocated.
struct Operation {
  std::uint64_t pages = 0;  // 0: frees
  std::size_t frees = 0;
};
using Trace = std::vector<Operation>;

// From one page to 64 MiB, as many of every order of magnitude.
std::uint64_t MixedSize(std::mt19937_64& random) {
  const double log = std::uniform_real_distribution<double>(0, std::log(static_cast<double>(kLargest)))(random);
  return static_cast<std::uint64_t>(std::exp(log));
}

// Keeps the pool about half full; with `long_lived` nine of ten are freed soon and the tenth stays for long.
Trace MakeTrace(bool long_lived, unsigned seed) {
  std::mt19937_64 random(seed);
  Trace trace;
  std::vector<std::size_t> live;
  std::uint64_t used = 0;
  while (trace.size() < kOperations) {
    const bool full = used > kPoolPages / 2;
    if (live.empty() || (!full && random() % 2 == 0)) {
      const std::uint64_t pages = MixedSize(random);
      live.push_back(trace.size());
      used += pages;
      trace.push_back({.pages = pages});
      continue;
    }
    // Young ones stand at the end.
    std::size_t victim = random() % live.size();
    if (long_lived && random() % 10 != 0) victim = live.size() - 1 - random() % std::min<std::size_t>(live.size(), 16);
    used -= trace[live[victim]].pages;
    trace.push_back({.pages = 0, .frees = live[victim]});
    live.erase(live.begin() + static_cast<std::ptrdiff_t>(victim));
  }
  return trace;
}

// Operations a second.
template <typename Allocator>
double Rate(const Trace& trace) {
  Allocator allocator;
  std::vector<typename Allocator::Handle> handles(trace.size());
  const auto start = std::chrono::steady_clock::now();
  for (std::size_t i = 0; i < trace.size(); ++i) {
    if (trace[i].pages > 0) {
      handles[i] = allocator.Allocate(trace[i].pages);
    } else {
      allocator.Free(handles[trace[i].frees]);
    }
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return static_cast<double>(trace.size()) / seconds;
}

class Ours {
 public:
  using Handle = shm::Run;
  Handle Allocate(std::uint64_t pages) { return runs_.Allocate(pages).value_or(shm::Run{}); }
  void Free(Handle run) {
    if (run.pages > 0) runs_.Free(run);
  }

 private:
  shm::RunAllocator runs_{kPoolPages};
};

// Boost's allocator as a managed segment uses it, its headers in the pool itself.
class RbtreeBestFit {
 public:
  using Handle = void*;
  using Algorithm = ipc::rbtree_best_fit<ipc::null_mutex_family>;

  RbtreeBestFit() : algorithm_(new (Memory()) Algorithm(kBytes, 0)) {}
  ~RbtreeBestFit() { algorithm_->~Algorithm(); }
  Handle Allocate(std::uint64_t pages) { return algorithm_->allocate_aligned(pages * shm::kPageSize, shm::kPageSize); }
  void Free(Handle memory) {
    if (memory != nullptr) algorithm_->deallocate(memory);
  }

 private:
  static constexpr std::size_t kBytes = kPoolPages * shm::kPageSize;

  // The same for every round, so that only the first, which does not count, pays for touching it.
  static void* Memory() {
    static void* const memory =
        mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) std::exit(EXIT_FAILURE);
    return memory;
  }

  Algorithm* algorithm_;
};

// What the kernel does without an MMU: the next power of two, and the excess given back.
class TrimmingBuddy {
 public:
  TrimmingBuddy() { FreeRange(0, kPoolPages); }

  bool Allocate(std::uint64_t pages) {
    unsigned order = 0;
    while ((std::uint64_t{1} << order) < pages) ++order;
    unsigned found = order;
    while (found < kOrders && free_[found].empty()) ++found;
    if (found == kOrders) return false;
    const std::uint64_t first = *free_[found].begin();
    free_[found].erase(free_[found].begin());
    for (; found > order; --found) free_[found - 1].insert(first + (std::uint64_t{1} << (found - 1)));
    FreeRange(first + pages, first + (std::uint64_t{1} << order));
    return true;
  }

 private:
  static constexpr unsigned kOrders = 21;  // up to the whole pool

  void FreeRange(std::uint64_t begin, std::uint64_t end) {
    while (begin < end) {
      unsigned order = 0;
      while (order + 1 < kOrders && begin % (std::uint64_t{2} << order) == 0 &&
             begin + (std::uint64_t{2} << order) <= end) {
        ++order;
      }
      FreeBlock(begin, order);
      begin += std::uint64_t{1} << order;
    }
  }
  void FreeBlock(std::uint64_t first, unsigned order) {
    for (; order + 1 < kOrders; ++order) {
      const std::uint64_t buddy = first ^ (std::uint64_t{1} << order);
      if (free_[order].erase(buddy) == 0) break;
      first = std::min(first, buddy);
    }
    free_[order].insert(first);
  }

  std::set<std::uint64_t> free_[kOrders];
};

void CompareRates(const char* name, bool long_lived) {
  std::vector<double> ours, baseline;
  const Trace trace = MakeTrace(long_lived, 1);
  Rate<RbtreeBestFit>(trace);
  Rate<Ours>(trace);
  for (int round = 0; round < kRounds; ++round) {
    baseline.push_back(Rate<RbtreeBestFit>(trace) / 1e6);
    ours.push_back(Rate<Ours>(trace) / 1e6);
  }
  Report(name, Median(ours), Median(baseline), "M operations/s");
}

// Allocations until the first refusal, as a share of the pool: medians over many random orders of sizes.
void CompareFill() {
  std::vector<double> ours, baseline;
  for (unsigned seed = 1; seed <= 99; ++seed) {
    std::mt19937_64 random(seed), same(seed);
    shm::RunAllocator runs(kPoolPages);
    TrimmingBuddy buddy;
    std::uint64_t of_ours = 0, of_buddy = 0;
    for (std::uint64_t pages = MixedSize(random); runs.Allocate(pages); pages = MixedSize(random)) of_ours += pages;
    for (std::uint64_t pages = MixedSize(same); buddy.Allocate(pages); pages = MixedSize(same)) of_buddy += pages;
    ours.push_back(100.0 * static_cast<double>(of_ours) / kPoolPages);
    baseline.push_back(100.0 * static_cast<double>(of_buddy) / kPoolPages);
  }
  Report("pool filled before the first refusal, against a buddy", Median(ours), Median(baseline), "%");
}

}  // namespace
}  // namespace mapbroker::bench

int main() {
  mapbroker::bench::CompareRates("allocate + free, mixed sizes, against rbtree_best_fit", false);
  mapbroker::bench::CompareRates("allocate + free, long- and short-lived, against the same", true);
  mapbroker::bench::CompareFill();
}
