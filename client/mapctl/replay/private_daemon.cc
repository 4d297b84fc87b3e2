#include "client/mapctl/replay/private_daemon.h"

#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "mapbroker/client.h"

extern char** environ;

namespace mapbroker::mapctl {
namespace {

// The memory of the machines that recorded the scenarios: some of them fill it.
constexpr char kPoolSize[] = "96M";
constexpr char kLargePoolSize[] = "640M";

absl::Status NotStarted(const std::string& why) {
  return absl::FailedPreconditionError(absl::StrCat("cannot start mapbrokerd: ", why));
}

}  // namespace

absl::StatusOr<PrivateDaemon> PrivateDaemon::Start(const std::string& program, const std::string& runtime_dir,
                                                   const std::string& profile, bool large) {
  PrivateDaemon daemon;
  daemon.directory_ = std::filesystem::temp_directory_path() / "mapctl-replay-XXXXXX";
  if (mkdtemp(daemon.directory_.data()) == nullptr) return NotStarted(std::strerror(errno));
  std::filesystem::create_directory(daemon.file_directory());
  daemon.runtime_dir_ = runtime_dir;
  if (!runtime_dir.empty()) return daemon;

  daemon.runtime_dir_ = daemon.directory_ + "/run";
  std::string beside = std::filesystem::path(program).parent_path() / "mapbrokerd";
  if (!std::filesystem::exists(beside)) beside = "mapbrokerd";
  std::vector<std::string> words{
      beside,      "--runtime-dir", daemon.runtime_dir_, "--pool-size", large ? kLargePoolSize : kPoolSize,
      "--profile", profile,         "--log-level",       "error"};
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  if (const int error = posix_spawnp(&daemon.pid_, beside.c_str(), nullptr, nullptr, argv.data(), environ);
      error != 0) {
    daemon.pid_ = 0;
    return NotStarted(std::strerror(error));
  }
  while (!Client::Connect({.runtime_dir = daemon.runtime_dir_}).ok()) {
    if (waitpid(daemon.pid_, nullptr, WNOHANG) != 0) {
      daemon.pid_ = 0;
      return NotStarted("it ended; its reason is above");
    }
    std::this_thread::yield();
  }
  return daemon;
}

PrivateDaemon::PrivateDaemon(PrivateDaemon&& other) noexcept
    : directory_(std::exchange(other.directory_, "")),
      runtime_dir_(std::move(other.runtime_dir_)),
      pid_(std::exchange(other.pid_, 0)) {}

PrivateDaemon::~PrivateDaemon() {
  if (pid_ != 0) {
    kill(pid_, SIGTERM);
    waitpid(pid_, nullptr, 0);
  }
  std::error_code ignored;
  if (!directory_.empty()) std::filesystem::remove_all(directory_, ignored);
}

}  // namespace mapbroker::mapctl
