// How long a daemon takes to serve again after one that was killed, as mappings grow.
//
// What the daemon before had is made here, by the daemon's own parts and with this process as the only client.
#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <string>

#include "bench/daemon_under_test.h"
#include "bench/report.h"
#include "daemon/broker.h"
#include "daemon/session/session_table.h"
#include "daemon/state.h"

namespace mapbroker::bench {
namespace {

constexpr int kRounds = 3;

[[noreturn]] void Die(const absl::Status& status) {
  std::fprintf(stderr, "bench: %s\n", std::string(status.message()).c_str());
  std::exit(EXIT_FAILURE);
}

// A runtime directory and a pool in memory, with anonymous mappings of a page each.
class Left {
 public:
  explicit Left(std::uint64_t mappings) {
    if (mkdtemp(dir_.data()) == nullptr) std::exit(EXIT_FAILURE);
    config_.runtime_dir = dir_;
    config_.pool = {.kind = shm::SegmentSpec::Kind::kFile, .name = dir_ + "/pool"};
    config_.pool.size = (mappings + 1024) * 4096;
    absl::StatusOr<State> state = State::Open(dir_, config_, {});
    if (!state.ok()) Die(state.status());
    shm::PagePool pages(state->segment().bytes(), /*prefault=*/false);
    Broker broker(*config_.profile, pages, state->segment().bytes(), {}, &state->ledger());
    session::SessionTable sessions(state->ledger());
    broker.StartRecording();
    const auto opened = sessions.Open({.pid = getpid()}, /*read_only=*/false, broker.OpenSpace(getpid()));
    if (!opened.ok()) Die(opened.status());
    for (std::uint64_t i = 0; i < mappings; ++i) {
      const auto grant = broker.Mmap(
          *opened->session, {.length = 4096, .prot = PROT_READ | PROT_WRITE, .flags = MAP_PRIVATE | MAP_ANONYMOUS}, -1);
      if (!grant.ok()) Die(grant.status());
    }
    state->Leave();
  }
  ~Left() { std::filesystem::remove_all(dir_); }

  // Seconds from the start of the program to the answer to the first call. The daemon is killed then.
  double Restart() const {
    const auto start = std::chrono::steady_clock::now();
    const Child daemon({MAPBROKERD, "--runtime-dir", dir_, "--pool", "file:" + config_.pool.name, "--pool-size",
                        std::to_string(config_.pool.size), "--log-level", "error"});
    for (;;) {
      absl::StatusOr<Client> client = Client::Connect({.runtime_dir = dir_});
      if (client.ok() && client->Statistics().ok()) break;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    kill(daemon.pid(), SIGKILL);
    return took.count();
  }

 private:
  std::string dir_ = "/dev/shm/mapbroker-bench-XXXXXX";
  Config config_;
};

void Run() {
  const Left nothing(1);
  for (const std::uint64_t mappings : {1'000, 100'000, 1'000'000}) {
    const Left left(mappings);
    std::vector<double> ours, baseline;
    for (int round = 0; round < kRounds; ++round) {
      ours.push_back(left.Restart());
      baseline.push_back(nothing.Restart());
    }
    Report("serving again after a kill, " + std::to_string(mappings) + " mappings against 1", Median(ours),
           Median(baseline), "s");
  }
}

}  // namespace
}  // namespace mapbroker::bench

int main() { mapbroker::bench::Run(); }
