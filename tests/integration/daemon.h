// A real mapbrokerd of a test's own.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "shm_backend/unique_fd.h"
#include "tests/integration/child.h"
#include "tests/integration/temp_dir.h"

namespace mapbroker::testing {

class Daemon {
 public:
  // Starts the daemon with a pool of 64 MiB, unless `options` give a size, and waits until it says by sd_notify(3) that
  // it is ready. Throws, which fails the test, if it does not come to that. Its runtime directory is `runtime_dir`, or
  // one of its own that does not exist before. `failure_points`: the file that mapbrokerd_test, which is started then,
  // has its failure points from (tests/system/failure_points.cc).
  explicit Daemon(std::vector<std::string> options = {}, const std::string& runtime_dir = "",
                  const std::string& failure_points = "");
  // Stops it, if the test has not.
  ~Daemon();

  const std::string& runtime_dir() const { return runtime_dir_; }
  // A directory for the test's files.
  const TempDir& files() const { return files_; }
  std::string Log() const { return process_->Errors(); }
  bool Running() const { return process_->Running(); }
  pid_t pid() const { return process_->pid(); }
  void Signal(int signal) const { process_->Signal(signal); }
  // What it has told its service manager next since it was ready; empty if nothing.
  std::string Notification() const;

  // What any test may do after its mischief: asserts that a well-behaved client can map a file and read it.
  void ExpectServes();

  // Asks it to stop and asserts that it does so with status 0 and leaves nothing in the file system.
  void Stop();
  // The same of one that was started with --keep-state, and so leaves what the next is to take over.
  void StopKeeping();
  // Ends it as a crash does.
  void Kill();
  // Waits for the end of one that is expected to end by itself; its status as a shell tells it.
  int AwaitEnd();

 private:
  TempDir home_, files_;
  shm::UniqueFd notify_;
  std::string runtime_dir_;
  std::optional<Child> process_;
  bool stopped_ = false;
};

// A daemon that is expected not to start: runs it to its end.
Finished RunDaemon(const std::vector<std::string>& options, const std::string& failure_points = "");

// Runs mapctl for the daemon that serves `runtime_dir`.
Finished Mapctl(const std::string& runtime_dir, const std::vector<std::string>& arguments);

}  // namespace mapbroker::testing
