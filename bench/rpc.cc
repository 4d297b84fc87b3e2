// Mmap of a range that is shared already against a call that does nothing, and how it grows with what is mapped.
#include <functional>

#include "bench/daemon_under_test.h"
#include "bench/noop_client.h"
#include "bench/raw_session.h"
#include "bench/report.h"

namespace mapbroker::bench {
namespace {

constexpr int kRounds = 60;  // the two sides take turns, so that both see the same machine
constexpr int kCallsPerRound = 100;

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
  const auto [ours, baseline] = Compare([&](auto& times) { session.MapShared(times, kCallsPerRound); },
                                        [&](auto& times) { noop.Call(times, kCallsPerRound); });
  Report("shared Mmap over gRPC, p50, against a no-op call", ours, baseline, "us");
}

void CompareSizes() {
  const DaemonUnderTest large("512M"), small("64M");
  const Client client_of_large = large.ConnectWhenResident(), client_of_small = small.ConnectWhenResident();
  RawSession many(large.dir()), few(small.dir());
  many.GrowTo(100'000);
  few.GrowTo(1'000);
  const auto [ours, baseline] = Compare([&](auto& times) { many.MapShared(times, kCallsPerRound); },
                                        [&](auto& times) { few.MapShared(times, kCallsPerRound); });
  Report("shared Mmap over gRPC, p50, 100,000 live against 1,000", ours, baseline, "us");
}

}  // namespace
}  // namespace mapbroker::bench

int main() {
  mapbroker::bench::CompareWithNoop();
  mapbroker::bench::CompareSizes();
}
