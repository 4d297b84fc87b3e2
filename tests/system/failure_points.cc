// The twin of shm_backend/failure_point.cc that mapbrokerd_test is linked with: fails and dies as a file says.
//
// MAPBROKER_FAILURE_POINTS names the file; it is read again whenever it is another one, so that a test can put one in
// its place by rename(2) while the daemon runs. Each line is NAME=WHAT or NAME=WHAT:WHEN, where WHAT is the name of an
// errno, or "kill" for SIGKILL, and WHEN the number of the pass, counted from when the file was read ("3"), or a chance
// ("1in50"); without WHEN it is every pass. Whatever comes to pass is told on standard error, as "failure point NAME:
// WHAT".
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <random>
#include <string>

#include "shm_backend/failure_point.h"
#include "shm_backend/mutex.h"

namespace mapbroker::shm {
namespace {

constexpr int kKill = -1;

struct Armed {
  int what = 0;  // an errno, or kKill; 0: nothing
  std::string what_name;
  std::uint64_t pass = 0;    // which one; 0: every
  std::uint64_t chance = 1;  // of how many one
  std::uint64_t passed = 0;
};

// A mistake in the file would be a test that tests nothing.
[[noreturn]] void Die(const std::string& what) {
  const std::string line = "failure points: " + what + "\n";
  if (write(STDERR_FILENO, line.data(), line.size()) < 0) _exit(3);
  _exit(3);
}

int NumberOf(const std::string& name) {
  if (name == "kill") return kKill;
  for (int error = 1; error < 134; ++error) {
    if (const char* const known = strerrorname_np(error); known != nullptr && name == known) return error;
  }
  Die("no errno " + name);
}

class FailurePoints {
 public:
  int Pass(Point point) {
    MutexLock lock(mutex_);
    ReadIfNew();
    Armed& armed = armed_[static_cast<std::size_t>(point)];
    if (armed.what == 0) return 0;
    ++armed.passed;
    if (armed.pass != 0 && armed.passed != armed.pass) return 0;
    if (armed.chance > 1 && random_() % armed.chance != 0) return 0;
    const std::string line =
        std::string("failure point ") + kPoints[static_cast<std::size_t>(point)].name + ": " + armed.what_name + "\n";
    if (write(STDERR_FILENO, line.data(), line.size()) < 0) _exit(3);
    if (armed.what != kKill) return armed.what;
    kill(getpid(), SIGKILL);
    for (;;) pause();
  }

 private:
  void ReadIfNew() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    struct stat now;
    if (path_ == nullptr || stat(path_, &now) != 0 || (now.st_ino == inode_ && now.st_mtim.tv_nsec == nanoseconds_)) {
      return;
    }
    inode_ = now.st_ino;
    nanoseconds_ = now.st_mtim.tv_nsec;
    armed_ = {};
    std::ifstream file(path_);
    for (std::string line; std::getline(file, line);) Arm(line);
  }

  void Arm(const std::string& line) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const std::size_t equals = line.find('='), colon = line.find(':');
    const std::string name = line.substr(0, equals), when = colon == std::string::npos ? "" : line.substr(colon + 1);
    Armed armed;
    armed.what_name = line.substr(equals + 1, colon == std::string::npos ? colon : colon - equals - 1);
    armed.what = NumberOf(armed.what_name);
    if (when.rfind("1in", 0) == 0) {
      armed.chance = std::stoull(when.substr(3));
    } else if (!when.empty()) {
      armed.pass = std::stoull(when);
    }
    for (const PointInfo& info : kPoints) {
      if (info.name != name) continue;
      if (armed.what != kKill && !info.can_fail) Die(name + " cannot fail");
      armed_[static_cast<std::size_t>(info.point)] = armed;
      return;
    }
    Die("no point " + name);
  }

  Mutex mutex_;
  const char* const path_ = std::getenv("MAPBROKER_FAILURE_POINTS");
  ino_t inode_ ABSL_GUARDED_BY(mutex_) = 0;
  long nanoseconds_ ABSL_GUARDED_BY(mutex_) = 0;
  std::minstd_rand random_ ABSL_GUARDED_BY(mutex_){std::random_device{}()};
  std::array<Armed, kPoints.size()> armed_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

int FailAt(Point point) {
  // Never destroyed: threads pass until the process is gone.
  static FailurePoints* const points = new FailurePoints;
  const int error = points->Pass(point);
  if (error != 0) errno = error;
  return error;
}

}  // namespace mapbroker::shm
