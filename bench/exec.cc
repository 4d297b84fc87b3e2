// Fifty instances of a 10 MiB program out of the pool, against plain execve of the same file: how long until main, and
// how much memory they take.
#include <fcntl.h>
#include <unistd.h>

#include <chrono>
#include <fstream>
#include <memory>

#include "bench/daemon_under_test.h"
#include "bench/report.h"

namespace mapbroker::bench {
namespace {

constexpr int kInstances = 50, kRounds = 5;

// Bytes of a process that are not the pool's, its part of what it shares with others.
double OwnBytes(pid_t pid) {
  std::ifstream smaps("/proc/" + std::to_string(pid) + "/smaps");
  double kib = 0;
  bool is_pool = false;
  for (std::string line; std::getline(smaps, line);) {
    // A line that begins with a lower-case hexadecimal address names the next mapping.
    if (std::isupper(static_cast<unsigned char>(line[0])) == 0)
      is_pool = line.find("memfd:mapbroker-pool") != line.npos;
    if (line.starts_with("Pss:") && !is_pool) kib += std::stod(line.substr(4));
  }
  return kib * 1024;
}

struct Measured {
  double ms = 0;     // to the main of one
  double bytes = 0;  // of all, without the pool
};

// Starts all at once.
Measured Start(const std::vector<std::string>& command, const std::function<void()>& while_they_run) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) std::exit(EXIT_FAILURE);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
  Measured measured;
  {
    std::vector<std::unique_ptr<Child>> children;
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < kInstances; ++i) children.push_back(std::make_unique<Child>(command, &actions));
    for (int i = 0; i < kInstances; ++i) {
      char c;
      if (read(ends[0], &c, 1) != 1) std::exit(EXIT_FAILURE);
    }
    const std::chrono::duration<double, std::milli> time = std::chrono::steady_clock::now() - start;
    measured.ms = time.count() / kInstances;
    for (const auto& child : children) measured.bytes += OwnBytes(child->pid());
    while_they_run();
  }
  posix_spawn_file_actions_destroy(&actions);
  close(ends[0]);
  close(ends[1]);
  return measured;
}

void Run() {
  const DaemonUnderTest daemon("256M");
  Client client = daemon.ConnectWhenResident();
  std::vector<double> our_ms, our_bytes, plain_ms, plain_bytes;
  for (int round = 0; round < kRounds; ++round) {
    double pool = 0;
    const Measured ours = Start({MAPCTL, "--runtime-dir", daemon.dir(), "exec", PROGRAM},
                                [&] { pool = static_cast<double>(client.Statistics()->used); });
    our_ms.push_back(ours.ms);
    our_bytes.push_back((ours.bytes + pool) / (1 << 20));
    while (client.Statistics()->free < client.Statistics()->pool_size) std::this_thread::yield();
    const Measured plain = Start({PROGRAM}, [] {});
    plain_ms.push_back(plain.ms);
    plain_bytes.push_back(plain.bytes / (1 << 20));
  }
  Report("exec of a 10 MiB program, 50 at once, to main, against execve", Median(our_ms), Median(plain_ms), "ms");
  Report("memory of 50 instances of it, against execve", Median(our_bytes), Median(plain_bytes), "MiB");
}

}  // namespace
}  // namespace mapbroker::bench

int main() { mapbroker::bench::Run(); }
