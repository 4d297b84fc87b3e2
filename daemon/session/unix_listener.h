// A listening Unix socket in the runtime directory.
#pragma once

#include <sys/types.h>

#include <string>

#include "absl/status/statusor.h"
#include "shm_backend/unique_fd.h"

namespace mapbroker::session {

// Not thread-safe. The socket's file is removed at destruction.
class UnixListener {
 public:
  // Listens on `path`, replacing a socket that a dead daemon left there: the caller holds the lock of the directory.
  // `type` is SOCK_STREAM or SOCK_SEQPACKET, `mode` the permission bits of the socket's file. ENAMETOOLONG, EACCES and
  // what bind(2) says.
  static absl::StatusOr<UnixListener> Listen(const std::string& path, int type, mode_t mode);

  UnixListener(UnixListener&&) noexcept = default;
  UnixListener& operator=(UnixListener&&) = delete;
  ~UnixListener();

  int fd() const { return fd_.get(); }

  // The next connection, non-blocking and close-on-exec; empty if none waits. When the process has no descriptor left,
  // the connection is closed, so that its peer is told and the queue does not stay full.
  shm::UniqueFd Accept();

 private:
  UnixListener(shm::UniqueFd fd, std::string path);

  shm::UniqueFd fd_;
  shm::UniqueFd spare_;  // given up to accept, and close, a connection for which there is no descriptor
  std::string path_;
};

}  // namespace mapbroker::session
