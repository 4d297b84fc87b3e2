// The decision, bookkeeping and record of a shared Mmap inside the daemon, and the memory of a mapping, as mappings
// grow.
#include <fcntl.h>
#include <malloc.h>
#include <sys/mman.h>

#include <chrono>
#include <cstdlib>

#include "bench/ledger_on_tmpfs.h"
#include "bench/report.h"
#include "daemon/broker.h"

namespace mapbroker::bench {
namespace {

constexpr std::uint64_t kMost = 1'000'000;
constexpr int kSamples = 20'000;

[[noreturn]] void Die(const absl::Status& status) {
  std::fprintf(stderr, "bench: %s\n", std::string(status.message()).c_str());
  std::exit(EXIT_FAILURE);
}

class Bench {
 public:
  // `ledger`: null for none.
  explicit Bench(shm::Ledger* ledger)
      : pool_(Reserve()),
        pages_(pool_, /*prefault=*/false),
        broker_(nommu::kClassic, pages_, pool_, {}, ledger),
        session_(1, {.pid = 1}, false, broker_.OpenSpace(1, &broker_.accounts().Of(1000))),
        fd_(*session_.AddFile(shm::UniqueFd(open("/proc/self/exe", O_RDONLY | O_CLOEXEC)))) {
    broker_.StartRecording();
    Map(Shared());  // the one that is shared from now on
  }
  ~Bench() { munmap(pool_.data(), pool_.size()); }

  // Microseconds of one Mmap of the shared range, p50.
  double SharedMmap() {
    std::vector<double> times;
    for (int i = 0; i < kSamples; ++i) {
      const auto start = std::chrono::steady_clock::now();
      const nommu::Grant grant = Map(Shared());
      times.push_back(std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count());
      const absl::Status status = broker_.Munmap(session_, grant.address, grant.length, NextRequest());
      if (!status.ok()) Die(status);
    }
    return Median(times);
  }

  void GrowTo(std::uint64_t mappings) {
    for (; live_ < mappings; ++live_) {
      Map({.length = 4096, .prot = PROT_READ | PROT_WRITE, .flags = MAP_PRIVATE | MAP_ANONYMOUS});
    }
  }

 private:
  // Addresses alone: nothing here is touched.
  static std::span<std::byte> Reserve() {
    const std::size_t size = (kMost + 4096) * 4096;
    void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) std::exit(EXIT_FAILURE);
    return {static_cast<std::byte*>(memory), size};
  }
  static nommu::MapRequest Shared() { return {.length = 1 << 16, .prot = PROT_READ, .flags = MAP_PRIVATE}; }
  // As a client numbers its calls, of which one runs at a time.
  session::RequestId NextRequest() {
    ++request_;
    return {.id = request_, .done = request_};
  }
  nommu::Grant Map(const nommu::MapRequest& request) {
    const absl::StatusOr<nommu::Grant> grant = broker_.Mmap(session_, request, fd_, NextRequest());
    if (!grant.ok()) Die(grant.status());
    return *grant;
  }

  const std::span<std::byte> pool_;
  shm::PagePool pages_;
  Broker broker_;
  session::Session session_;
  const int fd_;
  std::uint64_t live_ = 1;
  std::uint64_t request_ = 0;
};

void WithoutLedger() {
  Bench bench(nullptr);
  bench.GrowTo(1000);
  const double at_1000 = bench.SharedMmap();
  const std::size_t heap_before = mallinfo2().uordblks + mallinfo2().hblkhd;
  bench.GrowTo(kMost);
  const std::size_t heap = mallinfo2().uordblks + mallinfo2().hblkhd - heap_before;
  Report("decision + bookkeeping, p50, 1,000,000 live against 1,000", bench.SharedMmap(), at_1000, "us");
  // The kernel's vm_area_struct, vm_region and their tree nodes.
  constexpr double kKernelBytes = 300;
  Report("daemon memory of a mapping, against about 300 in the kernel",
         static_cast<double>(heap) / static_cast<double>(kMost - 1000), kKernelBytes, "bytes");
}

void WithLedger() {
  const LedgerOnTmpfs ledger;
  Bench recorded(ledger.get()), bare(nullptr);
  recorded.GrowTo(1000);
  bare.GrowTo(1000);
  const double at_1000 = recorded.SharedMmap();
  Report("decision + ledger, p50, against the decision alone", at_1000, bare.SharedMmap(), "us");
  recorded.GrowTo(kMost);
  Report("decision + ledger, p50, 1,000,000 live against 1,000", recorded.SharedMmap(), at_1000, "us");
}

}  // namespace
}  // namespace mapbroker::bench

int main() {
  mapbroker::bench::WithoutLedger();
  mapbroker::bench::WithLedger();
}
