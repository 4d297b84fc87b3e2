// Mmap of a range that is shared already against a call that does nothing, and how it grows with what is mapped.
#include <fcntl.h>

#include <functional>

#include "bench/daemon_under_test.h"
#include "bench/noop_client.h"
#include "bench/report.h"
#include "client/src/handoff.h"
#include "client/src/rpc_stub.h"

namespace mapbroker::bench {
namespace {

constexpr int kRounds = 60;  // the two sides take turns, so that both see the same machine
constexpr int kCallsPerRound = 100;

[[noreturn]] void Die(const absl::Status& status) {
  std::fprintf(stderr, "bench: %s\n", std::string(status.message()).c_str());
  std::exit(EXIT_FAILURE);
}

// A session below the library, so that a call is the call alone and nothing is attached. Has one range mapped that is
// shared from then on.
class RawSession {
 public:
  explicit RawSession(const std::string& dir)
      : handoff_(*Handoff::Connect(dir)), welcome_(*handoff_->Hello({}, pool_)), stub_(dir, welcome_.token()) {
    const shm::UniqueFd file(open(MAPBROKERD, O_RDONLY | O_CLOEXEC));
    shared_.set_length(1 << 20);
    shared_.set_prot(PROT_READ);
    shared_.set_flags(MAP_PRIVATE);
    shared_.set_fd(*handoff_->PassFile(file.get()));
    const v1::MmapResponse first = Mmap(shared_);
    unmap_.set_address(first.address());
    unmap_.set_length(first.length());
  }

  // Adds the times of calls that map the range, each followed by an unmapping that is not timed.
  void MapShared(std::vector<double>& times) {
    for (int i = 0; i < kCallsPerRound; ++i) {
      times.push_back(Microseconds([&] { Mmap(shared_); }));
      if (const absl::Status status = stub_.Munmap(unmap_); !status.ok()) Die(status);
    }
  }

  void GrowTo(int mappings) {
    v1::MmapRequest page;
    page.set_length(4096);
    page.set_prot(PROT_READ | PROT_WRITE);
    page.set_flags(MAP_PRIVATE | MAP_ANONYMOUS);
    page.set_fd(-1);
    for (; live_ < mappings; ++live_) Mmap(page);
  }

 private:
  v1::MmapResponse Mmap(const v1::MmapRequest& request) {
    const auto mapped = stub_.Mmap(request);
    if (!mapped.ok()) Die(mapped.status());
    return *mapped;
  }

  shm::UniqueFd pool_;
  std::unique_ptr<Handoff> handoff_;
  v1::Welcome welcome_;
  RpcStub stub_;
  v1::MmapRequest shared_;
  v1::MunmapRequest unmap_;
  int live_ = 1;
};

// The medians of two sides that take turns, after one round that does not count.
std::pair<double, double> Compare(const std::function<void(std::vector<double>&)>& ours,
                                  const std::function<void(std::vector<double>&)>& baseline) {
  std::vector<double> of_ours, of_baseline;
  ours(of_ours);
  baseline(of_baseline);
  of_ours.clear();
  of_baseline.clear();
  for (int round = 0; round < kRounds; ++round) {
    ours(of_ours);
    baseline(of_baseline);
  }
  return {Median(of_ours), Median(of_baseline)};
}

void CompareWithNoop() {
  const DaemonUnderTest daemon("64M");
  const Client client = daemon.ConnectWhenResident();
  const std::string socket = daemon.dir() + "/noop.sock";
  const Child server({NOOP_SERVER, socket});
  NoopClient noop(socket);
  RawSession session(daemon.dir());
  const auto [ours, baseline] =
      Compare([&](auto& times) { session.MapShared(times); }, [&](auto& times) { noop.Call(times, kCallsPerRound); });
  Report("shared Mmap over gRPC, p50, against a no-op call", ours, baseline, "us");
}

void CompareSizes() {
  const DaemonUnderTest large("512M"), small("64M");
  const Client client_of_large = large.ConnectWhenResident(), client_of_small = small.ConnectWhenResident();
  RawSession many(large.dir()), few(small.dir());
  many.GrowTo(100'000);
  few.GrowTo(1'000);
  const auto [ours, baseline] =
      Compare([&](auto& times) { many.MapShared(times); }, [&](auto& times) { few.MapShared(times); });
  Report("shared Mmap over gRPC, p50, 100,000 live against 1,000", ours, baseline, "us");
}

}  // namespace
}  // namespace mapbroker::bench

int main() {
  mapbroker::bench::CompareWithNoop();
  mapbroker::bench::CompareSizes();
}
