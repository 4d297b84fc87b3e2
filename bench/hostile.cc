// What a well-behaved client's shared Map takes while another user attacks the daemon, against what it takes without,
// for every attack of tests/integration/attacker_main.cc.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <array>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <optional>
#include <sstream>

#include "bench/daemon_under_test.h"
#include "bench/report.h"
#include "shm_backend/unique_fd.h"

namespace mapbroker::bench {
namespace {

constexpr int kCalls = 2000;  // of which twenty lie beyond the 99th percentile
constexpr char kMallory[] = "20006";

// An attacker's process, and a pipe with what it says.
class Attacker {
 public:
  explicit Attacker(const std::vector<std::string>& arguments) : output_(MakePipe()), actions_(output_[1]) {
    std::vector<std::string> command = {ATTACKER};
    command.insert(command.end(), arguments.begin(), arguments.end());
    child_.emplace(command, &actions_.actions);
    close(output_[1]);
  }
  ~Attacker() { close(output_[0]); }
  Attacker(const Attacker&) = delete;
  Attacker& operator=(const Attacker&) = delete;

  // Its output to the next newline.
  std::string ReadLine() const {
    std::string line;
    for (char next; read(output_[0], &next, 1) == 1 && next != '\n';) line += next;
    return line;
  }

 private:
  struct Actions {
    explicit Actions(int output) {
      posix_spawn_file_actions_init(&actions);
      posix_spawn_file_actions_adddup2(&actions, output, STDOUT_FILENO);
    }
    ~Actions() { posix_spawn_file_actions_destroy(&actions); }
    posix_spawn_file_actions_t actions;
  };
  static std::array<int, 2> MakePipe() {
    std::array<int, 2> ends;
    if (pipe2(ends.data(), O_CLOEXEC) != 0) std::exit(EXIT_FAILURE);
    return ends;
  }

  const std::array<int, 2> output_;
  Actions actions_;
  std::optional<Child> child_;
};

double Percentile(std::vector<double> samples, std::size_t percent) {
  const auto at = samples.begin() + static_cast<std::ptrdiff_t>(samples.size() * percent / 100);
  std::nth_element(samples.begin(), at, samples.end());
  return *at;
}

std::vector<double> MapShared(Client& client, int fd) {
  std::vector<double> times;
  for (int i = 0; i < kCalls; ++i) {
    const auto start = std::chrono::steady_clock::now();
    const auto mapping = client.Map({.length = 1 << 20, .prot = PROT_READ, .flags = MAP_PRIVATE, .fd = fd});
    times.push_back(std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count());
    if (!mapping.ok()) {
      std::fprintf(stderr, "bench: %s\n", std::string(mapping.status().message()).c_str());
      std::exit(EXIT_FAILURE);
    }
  }
  return times;
}

void Measure(const std::string& attack) {
  // Everybody may connect: the attacker is another user, if root runs this.
  const std::string config = std::filesystem::temp_directory_path() / ("mapbroker-hostile-" + std::to_string(getpid()));
  std::ofstream(config) << "[sockets]\nmode = \"0666\"\n";
  const DaemonUnderTest daemon("64M", {"--config", config});
  chmod(daemon.dir().c_str(), 0711);
  Client client = daemon.ConnectWhenResident();
  std::filesystem::remove(config);
  const shm::UniqueFd file(open(MAPBROKERD, O_RDONLY | O_CLOEXEC));
  const auto held = client.Map({.length = 1 << 20, .prot = PROT_READ, .flags = MAP_PRIVATE, .fd = file.get()});
  MapShared(client, file.get());  // does not count
  const std::vector<double> alone = MapShared(client, file.get());
  const Attacker attacker({daemon.dir(), attack, kMallory});
  if (attacker.ReadLine() != "attacking") std::exit(EXIT_FAILURE);
  const std::vector<double> attacked = MapShared(client, file.get());
  for (const std::size_t percent : {50, 99}) {
    Report("shared Map, p" + std::to_string(percent) + ", under attack by " + attack, Percentile(attacked, percent),
           Percentile(alone, percent), "us");
  }
}

}  // namespace
}  // namespace mapbroker::bench

int main() {
  const mapbroker::bench::Attacker lister({"--list"});
  for (std::string attack = lister.ReadLine(); !attack.empty(); attack = lister.ReadLine()) {
    mapbroker::bench::Measure(attack);
  }
}
