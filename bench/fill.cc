// The first mapping of a cached file against a bare pread loop into the same memory.
#include <fcntl.h>
#include <unistd.h>

#include <chrono>

#include "bench/daemon_under_test.h"
#include "bench/report.h"

namespace mapbroker::bench {
namespace {

constexpr std::size_t kFileSize = std::size_t{256} << 20;
constexpr int kRounds = 9;

double Seconds(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

[[noreturn]] void Die(const absl::Status& status) {
  std::fprintf(stderr, "bench: %s\n", std::string(status.message()).c_str());
  std::exit(EXIT_FAILURE);
}

void ReadAll(int fd, std::span<std::byte> into) {
  for (std::size_t done = 0; done < into.size();) {
    const ssize_t read = pread(fd, into.data() + done, into.size() - done, static_cast<off_t>(done));
    if (read <= 0) std::exit(EXIT_FAILURE);
    done += static_cast<std::size_t>(read);
  }
}

void WaitUntilScrubbed(Client& client) {
  while (client.Statistics()->scrubbing > 0) std::this_thread::yield();
}

void Run() {
  const DaemonUnderTest daemon("600M");
  Client client = daemon.ConnectWhenResident();
  std::string path = daemon.dir() + "/file-XXXXXX";
  const int fd = mkostemp(path.data(), O_CLOEXEC);
  absl::StatusOr<Mapping> memory =
      client.Map({.length = kFileSize, .prot = PROT_READ | PROT_WRITE, .flags = MAP_PRIVATE | MAP_ANONYMOUS});
  if (!memory.ok()) Die(memory.status());
  std::fill(memory->bytes().begin(), memory->bytes().end(), std::byte{'x'});
  if (write(fd, memory->bytes().data(), kFileSize) != static_cast<ssize_t>(kFileSize)) std::exit(EXIT_FAILURE);
  ReadAll(fd, memory->bytes());

  std::vector<double> ours, baseline;
  for (int round = 0; round < kRounds; ++round) {
    auto start = std::chrono::steady_clock::now();
    ReadAll(fd, memory->bytes());
    baseline.push_back(Seconds(start));

    start = std::chrono::steady_clock::now();
    absl::StatusOr<Mapping> mapped = client.Map({.length = kFileSize, .fd = fd});
    ours.push_back(Seconds(start));
    if (!mapped.ok() || mapped->existing()) Die(mapped.status());
    mapped = Mapping();
    WaitUntilScrubbed(client);
  }
  constexpr double kGiB = 1 << 30;
  Report("first mapping of a cached 256 MiB file, against pread", kFileSize / kGiB / Median(ours),
         kFileSize / kGiB / Median(baseline), "GiB/s");
}

}  // namespace
}  // namespace mapbroker::bench

int main() { mapbroker::bench::Run(); }
