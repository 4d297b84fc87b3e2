// A listening Unix socket, made in the runtime directory or by the service manager.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "shm_backend/unique_fd.h"

namespace mapbroker::session {

// Not thread-safe. A socket's file is removed at destruction, if it was made here.
class UnixListener {
 public:
  // Listens on `path`, replacing a socket that a dead daemon left there: the caller holds the lock of the directory.
  // `type` is SOCK_STREAM or SOCK_SEQPACKET, `mode` the permission bits of the socket's file, `group` whose it is, if
  // it is not to be the process's. ENAMETOOLONG, EACCES, EPERM and what bind(2) says.
  static absl::StatusOr<UnixListener> Listen(const std::string& path, int type, mode_t mode,
                                             std::optional<gid_t> group = {});
  // A socket that listens already; its file, mode and owner are its maker's.
  static UnixListener Adopt(shm::UniqueFd fd);

  UnixListener(UnixListener&&) noexcept = default;
  UnixListener& operator=(UnixListener&&) = delete;
  ~UnixListener();

  int fd() const { return fd_.get(); }
  // Of the socket's file; empty if it has none.
  const std::string& path() const { return path_; }

  // The next connection, non-blocking and close-on-exec; empty if none waits. When the process has no descriptor left,
  // the connection is closed, so that its peer is told and the queue does not stay full.
  shm::UniqueFd Accept();

 private:
  UnixListener(shm::UniqueFd fd, std::string path, bool made);

  shm::UniqueFd fd_;
  shm::UniqueFd spare_;  // given up to accept, and close, a connection for which there is no descriptor
  std::string path_;
  bool made_;
};

}  // namespace mapbroker::session
