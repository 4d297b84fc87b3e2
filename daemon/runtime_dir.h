// The directory of a daemon's sockets, held by one daemon at a time.
#pragma once

#include <sys/types.h>

#include <string>

#include "absl/status/statusor.h"
#include "shm_backend/unique_fd.h"

namespace mapbroker {

class RuntimeDir {
 public:
  // Makes the directory (mode 0750) if it is missing, its parents not, and locks it. EBUSY: another daemon has it;
  // EACCES: it cannot be written. Each is one clear sentence.
  static absl::StatusOr<RuntimeDir> Hold(const std::string& path);

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
