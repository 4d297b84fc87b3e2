// A program that a test runs: its input, its output, and how it ended.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstddef>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "shm_backend/unique_fd.h"

namespace mapbroker::testing {

// Far more than anything a test waits for takes, under a sanitizer on a busy machine too: reaching it is a failure.
inline constexpr std::chrono::seconds kDeadline(120);

// Asks `condition` until it holds. False, and a failure of the test, at the deadline.
bool WaitUntil(const std::string& what, const std::function<bool()>& condition);

using Environment = std::vector<std::pair<std::string, std::string>>;

// Not thread-safe. Whatever waits fails the test at the deadline.
class Child {
 public:
  // Starts `arguments[0]` with this process's environment, `environment` in place of what it has by these names.
  // `descriptors` stay the caller's
  // and are 3, 4 and so on in the child. Throws if it cannot be started.
  explicit Child(const std::vector<std::string>& arguments, const Environment& environment = {},
                 const std::vector<int>& descriptors = {});
  // Kills the process if it still runs.
  ~Child();
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  pid_t pid() const { return pid_; }
  bool Running() const;

  void WriteLine(const std::string& line);
  void CloseInput() { input_.reset(); }
  // The next line of its output without the newline; what there is at the end of the output.
  std::string ReadLine();
  // Its output to the end.
  std::string ReadAll();
  // What it has written to standard error so far.
  std::string Errors() const;

  void Signal(int signal) const;
  // Waits for the end. The status as a shell tells it: 128 + N when signal N ended it.
  int Wait();

 private:
  bool FillBuffer();

  pid_t pid_ = -1;
  bool reaped_ = false;
  shm::UniqueFd pidfd_, input_, output_, errors_;
  std::string buffer_;
};

// How many descriptors the process has of what /proc calls `target`, or begins so ("socket:"); "" is all.
std::size_t CountDescriptors(pid_t pid, const std::string& target = "");

struct Finished {
  int status;
  std::string output, errors;
};

// Runs a program to its end.
Finished Run(const std::vector<std::string>& arguments, const Environment& environment = {});

}  // namespace mapbroker::testing
