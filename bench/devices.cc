// What devices cost: a file of an image mapped where it lies against a copy of it, and a driver's answers against a
// call that does nothing.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "bench/daemon_under_test.h"
#include "bench/noop_client.h"
#include "bench/report.h"
#include "mapbroker/driver.h"

namespace mapbroker::bench {
namespace {

constexpr std::uint64_t kFileSize = std::uint64_t{16} << 20;

void Check(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "bench: %s\n", std::string(status.message()).c_str());
  std::exit(EXIT_FAILURE);
}

// An image with the one file "big", which begins at a page. Made by genromfs.
std::string MakeRomfs(const std::string& dir) {
  std::filesystem::create_directory(dir + "/tree");
  std::ofstream(dir + "/tree/big") << std::string(kFileSize, 'x');
  const std::string image = dir + "/image";
  const std::string command = "genromfs -f " + image + " -d " + dir + "/tree -A '4096,/*'";
  if (std::system(command.c_str()) != 0) std::exit(EXIT_FAILURE);
  return image;
}

// Adds the time of mapping the file and unmapping it.
void TimeMapping(Client& client, const File& file, std::vector<double>& times) {
  times.push_back(Microseconds([&] {
    absl::StatusOr<Mapping> mapping = client.Map({.length = kFileSize, .prot = PROT_READ | PROT_EXEC, .file = &file});
    Check(mapping.status());
    Check(mapping->Unmap());
  }));
  while (client.Statistics()->scrubbing > 0) std::this_thread::yield();
}

void CompareImage() {
  constexpr int kRounds = 41;
  const DaemonUnderTest daemon("128M");
  Client client = daemon.ConnectWhenResident();
  const std::string image = MakeRomfs(daemon.dir());
  const int contents = open(image.c_str(), O_RDONLY | O_CLOEXEC);
  for (const char* map : {"direct", "copy"}) {
    Check(client.CreateDevice({.name = std::string("dev:/") + map,
                               .kind = "flash",
                               .options = {{"chip", "rom"}, {"size", "17M"}, {"map", map}},
                               .contents_fd = contents}));
    Check(client.Mount(std::string("mnt:/") + map, std::string("dev:/") + map));
  }
  close(contents);
  const absl::StatusOr<File> direct = client.Open("mnt:/direct/big", O_RDONLY),
                             copied = client.Open("mnt:/copy/big", O_RDONLY);
  Check(direct.status());
  Check(copied.status());
  std::vector<double> ours, baseline;
  for (int round = 0; round < kRounds; ++round) {
    TimeMapping(client, *direct, ours);
    TimeMapping(client, *copied, baseline);
  }
  Report("map 16 MiB of a romfs file directly, against copying it", Median(ours), Median(baseline), "us");
}

void CompareDriver() {
  constexpr int kRounds = 60, kCallsPerRound = 100;
  const DaemonUnderTest daemon("64M");
  Client client = daemon.ConnectWhenResident(), drives = daemon.Connect();
  const std::string socket = daemon.dir() + "/noop.sock";
  const Child server({NOOP_SERVER, socket});
  NoopClient noop(socket);
  absl::StatusOr<Driver> driver =
      Driver::Register(drives, {.name = "dev:/bench", .mode = 0600, .memory = 4096},
                       {.get_unmapped_area = [](const DriverRequest& request) { return request.offset; },
                        .mmap = [](const DriverRequest&, const DriverArea&) { return absl::OkStatus(); },
                        .read = {},
                        .close = {}});
  Check(driver.status());
  const absl::StatusOr<File> device = client.Open("dev:/bench", O_RDONLY);
  Check(device.status());
  std::vector<double> ours, baseline;
  for (int round = 0; round < kRounds; ++round) {
    for (int i = 0; i < kCallsPerRound; ++i) {
      absl::StatusOr<Mapping> mapping;
      ours.push_back(Microseconds(
          [&] { mapping = client.Map({.length = 4096, .prot = PROT_READ, .flags = MAP_SHARED, .file = &*device}); }));
      Check(mapping.status());
      Check(mapping->Unmap());
    }
    noop.Call(baseline, kCallsPerRound);
  }
  Report("Map of a driver's device (it is asked twice), against a no-op call", Median(ours), Median(baseline), "us");
}

}  // namespace
}  // namespace mapbroker::bench

int main() {
  mapbroker::bench::CompareImage();
  mapbroker::bench::CompareDriver();
}
