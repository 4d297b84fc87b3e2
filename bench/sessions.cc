// Many sessions of one daemon against one: latency and throughput of a shared Mmap, and the memory of a session.
#include <fcntl.h>
#include <sys/resource.h>

#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "bench/daemon_under_test.h"
#include "bench/noop_client.h"
#include "bench/raw_session.h"
#include "bench/report.h"

namespace mapbroker::bench {
namespace {

constexpr int kRounds = 20;
constexpr int kCallsPerRound = 500;
constexpr int kThreads = 4;

// Bytes of memory of its own that a process has resident.
double ResidentBytes(pid_t pid) {
  std::ifstream status("/proc/" + std::to_string(pid) + "/status");
  for (std::string word; status >> word;) {
    if (double kib; word == "RssAnon:" && status >> kib) return kib * 1024;
  }
  return 0;
}

// A daemon and sessions that take turns.
class Crowd {
 public:
  explicit Crowd(std::size_t sessions) {
    const Client client = daemon_.ConnectWhenResident();
    Add();
    const double before = ResidentBytes(daemon_.pid());
    while (sessions_.size() < sessions) Add();
    bytes_of_a_session_ = (ResidentBytes(daemon_.pid()) - before) / static_cast<double>(sessions);
  }

  double bytes_of_a_session() const { return bytes_of_a_session_; }

  void Latency(std::vector<double>& times) {
    for (int i = 0; i < kCallsPerRound; ++i) sessions_[next_++ % sessions_.size()]->MapShared(times, 1);
  }

  // Thousands of mappings a second, from several threads.
  double Throughput() {
    const double took = Microseconds([&] {
      std::vector<std::thread> threads;
      for (std::size_t thread = 0; thread < kThreads; ++thread) {
        threads.emplace_back([this, thread] {
          std::vector<double> times;
          for (std::size_t i = 0; i < kCallsPerRound; ++i) {
            sessions_[(thread + i * kThreads) % sessions_.size()]->MapShared(times, 1);
          }
        });
      }
      for (std::thread& thread : threads) thread.join();
    });
    return kThreads * kCallsPerRound / took * 1000;
  }

 private:
  void Add() { sessions_.push_back(std::make_unique<RawSession>(daemon_.dir())); }

  const DaemonUnderTest daemon_{"64M"};
  std::vector<std::unique_ptr<RawSession>> sessions_;
  std::size_t next_ = 0;
  double bytes_of_a_session_ = 0;
};

void Run() {
  rlimit descriptors{};
  getrlimit(RLIMIT_NOFILE, &descriptors);
  descriptors.rlim_cur = descriptors.rlim_max;
  setrlimit(RLIMIT_NOFILE, &descriptors);
  Crowd one(1);
  for (const std::size_t sessions : {10, 100, 1000}) {
    Crowd crowd(sessions);
    std::vector<double> of_crowd, of_one, crowd_rates, one_rates;
    for (int round = 0; round < kRounds; ++round) {
      crowd.Latency(of_crowd);
      one.Latency(of_one);
      crowd_rates.push_back(crowd.Throughput());
      one_rates.push_back(one.Throughput());
    }
    const std::string against = ", " + std::to_string(sessions) + " sessions against 1";
    Report("shared Mmap over gRPC, p50" + against, Median(of_crowd), Median(of_one), "us");
    Report("shared Mmap over gRPC, p99" + against, Quantile(of_crowd, 0.99), Quantile(of_one, 0.99), "us");
    Report("shared Mmap and Munmap, 4 threads" + against, Median(crowd_rates), Median(one_rates), "k/s");
    constexpr double kBudget = 64 << 10;
    if (sessions == 1000)
      Report("daemon memory of a session, against its budget", crowd.bytes_of_a_session(), kBudget, "bytes");
  }
}

}  // namespace
}  // namespace mapbroker::bench

int main() { mapbroker::bench::Run(); }
