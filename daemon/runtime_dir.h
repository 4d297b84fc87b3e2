// The directory of a daemon's sockets, held by one daemon at a time.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "shm_backend/unique_fd.h"

namespace mapbroker {

class RuntimeDir {
 public:
  // Makes the directory if it is missing, with these permission bits and, if given, this group; its parents not. Locks
  // it. EBUSY: another daemon has it; EACCES: it cannot be written. Each is one clear sentence.
  static absl::StatusOr<RuntimeDir> Hold(const std::string& path, mode_t mode, std::optional<gid_t> group);

  RuntimeDir(RuntimeDir&&) noexcept = default;
  RuntimeDir& operator=(RuntimeDir&&) = delete;
  // Removes the directory if Hold made it and it is empty.
  ~RuntimeDir();

  const std::string& path() const { return path_; }

 private:
  RuntimeDir(std::string path, bool made, shm::UniqueFd lock);

  std::string path_;
  bool made_;
  shm::UniqueFd lock_;  // the lock goes with the process, however it ends
};

}  // namespace mapbroker
