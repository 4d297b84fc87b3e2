// The processes of a scenario: each is a real process with a session of its own that does what it is told.
#pragma once

#include <sys/types.h>

#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace mapbroker::mapctl {

// What a process does: reads one order (a JSON object) a line from standard input, carries it out and answers with one
// line. Orders name memory by pool address and files by name; see worker.cc for each. Returns the exit status.
// `kept_in`: a descriptor with what an executed worker needs of its former life, -1 if there was none.
int WorkerMain(const std::string& runtime_dir, int kept_in);

// The other end: a process that runs WorkerMain.
class Worker {
 public:
  // Starts mapctl with these words; its answers go to `output` instead, if that is a descriptor.
  static absl::StatusOr<Worker> Start(std::vector<std::string> words, int output = -1);
  Worker(Worker&& other) noexcept;
  Worker& operator=(Worker&&) = delete;
  // Kills it if it still runs.
  ~Worker();

  pid_t pid() const { return pid_; }

  // {"errno": "ECHILD"} if it died meanwhile.
  nlohmann::json Ask(const nlohmann::json& order);

  // Lets it end by itself; waits for that.
  void Exit();
  // SIGKILL; waits until it is dead.
  void Kill();

 private:
  Worker(pid_t pid, FILE* orders, FILE* answers) : pid_(pid), orders_(orders), answers_(answers) {}
  void Reap();

  pid_t pid_;
  FILE* orders_;
  FILE* answers_;
};

}  // namespace mapbroker::mapctl
