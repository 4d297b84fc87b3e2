// How soon another process sees what is drawn into a frame buffer, against plain shared memory: a number goes to a
// second process and back, each way by a store that the other waits for.
#include <fcntl.h>
#include <immintrin.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstring>

#include "bench/daemon_under_test.h"
#include "bench/report.h"

namespace mapbroker::bench {
namespace {

constexpr std::uint64_t kBytes = 64 * 64 * 4;
constexpr int kRounds = 40;
constexpr std::uint64_t kTripsPerRound = 2000;
constexpr char kDevice[] = "dev:/fb";

// The two numbers lie in cache lines of their own, in the buffer's first row and in its last.
std::atomic<std::uint64_t>& There(std::byte* memory) { return *reinterpret_cast<std::atomic<std::uint64_t>*>(memory); }
std::atomic<std::uint64_t>& Back(std::byte* memory) {
  return *reinterpret_cast<std::atomic<std::uint64_t>*>(memory + kBytes - 64);
}

void WaitFor(const std::atomic<std::uint64_t>& number, std::uint64_t value) {
  while (number.load(std::memory_order_acquire) != value) _mm_pause();
}

// The second process.
[[noreturn]] void Echo(std::byte* memory) {
  for (std::uint64_t trip = 1;; ++trip) {
    WaitFor(There(memory), trip);
    Back(memory).store(trip, std::memory_order_release);
  }
}

// Nanoseconds of one way, for one round.
double OneWay(std::byte* memory, std::uint64_t& trip) {
  const auto start = std::chrono::steady_clock::now();
  for (std::uint64_t i = 0; i < kTripsPerRound; ++i) {
    There(memory).store(++trip, std::memory_order_release);
    WaitFor(Back(memory), trip);
  }
  const std::chrono::duration<double, std::nano> time = std::chrono::steady_clock::now() - start;
  return time.count() / (2 * kTripsPerRound);
}

std::byte* MapPlain(int fd) {
  void* const memory = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (memory == MAP_FAILED) std::exit(EXIT_FAILURE);
  return static_cast<std::byte*>(memory);
}

Mapping MapDevice(Client& client) {
  const absl::StatusOr<File> device = client.Open(kDevice, O_RDWR);
  if (!device.ok()) std::exit(EXIT_FAILURE);
  absl::StatusOr<Mapping> mapping =
      client.Map({.length = kBytes, .prot = PROT_READ | PROT_WRITE, .flags = MAP_SHARED, .file = &*device});
  if (!mapping.ok()) std::exit(EXIT_FAILURE);
  return *std::move(mapping);
}

void Compare() {
  const DaemonUnderTest daemon("64M");
  Client client = daemon.ConnectWhenResident();
  const absl::Status made = client.CreateDevice(
      {.name = kDevice, .kind = "framebuffer", .options = {{"width", "64"}, {"height", "64"}}, .mode = 0600});
  if (!made.ok()) std::exit(EXIT_FAILURE);
  Mapping device = MapDevice(client);
  const int fd = memfd_create("plain", 0);  // inherited by the second process
  if (ftruncate(fd, kBytes) != 0) std::exit(EXIT_FAILURE);
  std::byte* const plain = MapPlain(fd);

  // One side at a time, so that a waiting echo takes no core from the other.
  std::vector<double> ours, baseline;
  std::uint64_t trip = 0;
  {
    const Child echo({"/proc/self/exe", "device", daemon.dir()});
    OneWay(device.bytes().data(), trip);
    for (int round = 0; round < kRounds; ++round) ours.push_back(OneWay(device.bytes().data(), trip));
  }
  trip = 0;
  {
    const Child echo({"/proc/self/exe", "plain", std::to_string(fd)});
    OneWay(plain, trip);
    for (int round = 0; round < kRounds; ++round) baseline.push_back(OneWay(plain, trip));
  }
  Report("frame buffer update seen by a second process, against memfd", Median(ours), Median(baseline), "ns");
}

}  // namespace
}  // namespace mapbroker::bench

int main(int argc, char** argv) {
  using namespace mapbroker;
  if (argc == 3 && std::strcmp(argv[1], "plain") == 0) bench::Echo(bench::MapPlain(std::atoi(argv[2])));
  if (argc == 3 && std::strcmp(argv[1], "device") == 0) {
    absl::StatusOr<Client> client = Client::Connect({.runtime_dir = argv[2]});
    if (!client.ok()) return EXIT_FAILURE;
    Mapping mapping = bench::MapDevice(*client);
    bench::Echo(mapping.bytes().data());
  }
  bench::Compare();
}
