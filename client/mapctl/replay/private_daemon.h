// The daemon that scenarios are played against: one of our own, or one that runs already.
#pragma once

#include <sys/types.h>

#include <string>

#include "absl/status/statusor.h"

namespace mapbroker::mapctl {

// Stops what it started, and removes its directory, when destroyed.
class PrivateDaemon {
 public:
  // With `runtime_dir` the daemon that serves it; otherwise starts the mapbrokerd that lies beside `program`, or the
  // one of PATH, with `profile` and a pool as large as the memory of the machine that recorded such scenarios.
  static absl::StatusOr<PrivateDaemon> Start(const std::string& program, const std::string& runtime_dir,
                                             const std::string& profile, bool large);
  PrivateDaemon(PrivateDaemon&& other) noexcept;
  PrivateDaemon& operator=(PrivateDaemon&&) = delete;
  ~PrivateDaemon();

  const std::string& runtime_dir() const { return runtime_dir_; }
  // An empty directory for the files of scenarios.
  std::string file_directory() const { return directory_ + "/files"; }

 private:
  PrivateDaemon() = default;

  std::string directory_;
  std::string runtime_dir_;
  pid_t pid_ = 0;  // 0: not ours
};

}  // namespace mapbroker::mapctl
