// What outlives a daemon: the pool and the ledger, made or taken over from the daemon before.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "daemon/config.h"
#include "shm_backend/ledger.h"
#include "shm_backend/segment.h"
#include "shm_backend/unique_fd.h"

namespace mapbroker {

// A ledger that is not taken over, with the reason and what is to be done.
absl::Status DoesNotFit(const std::string& why);

class State {
 public:
  // In a runtime directory that this process holds. A pool is found by its name, in `stored` (what the service manager
  // kept; empty: nothing), or with a client that still has it. FailedPrecondition: the ledger's pool is gone or the
  // ledger does not fit, and with what is to be done; else what Segment and Ledger say.
  static absl::StatusOr<State> Open(const std::string& runtime_dir, const Config& config, shm::UniqueFd stored);

  State(State&&) noexcept = default;
  State& operator=(State&&) = delete;
  // Removes both, unless Leave was called.
  ~State();

  shm::Segment& segment() { return *segment_; }
  shm::Ledger& ledger() { return *ledger_; }
  // They are a daemon's before this one.
  bool restored() const { return restored_; }
  // When they were made, in milliseconds since the epoch.
  std::int64_t since() const { return since_; }

  // Pool and ledger stay for the next daemon. From now on nothing is recorded.
  void Leave();

 private:
  State() = default;
  absl::Status TakeOver(const Config& config, shm::UniqueFd stored);
  absl::Status MakeNew(const Config& config);

  std::string path_;
  std::unique_ptr<shm::Ledger> ledger_;
  std::unique_ptr<shm::Segment> segment_;
  bool restored_ = false;
  std::int64_t since_ = 0;
  bool stored_ = false;  // the pool was, and still is, with the service manager
  bool left_ = false;
};

}  // namespace mapbroker
