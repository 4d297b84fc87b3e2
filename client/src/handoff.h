// The library's end of the handoff socket.
#pragma once

#include <unistd.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/src/space_mark.h"
#include "mapbroker/v1/handoff.pb.h"
#include "shm_backend/mutex.h"
#include "shm_backend/unique_fd.h"

namespace mapbroker {

// Thread-safe. Belongs to the address space that it was made in: in a forked child every exchange is refused, and
// nothing is said that the parent's session would take for its own (X1).
class Handoff {
 public:
  // Connects to the daemon of `runtime_dir`; nothing is said yet.
  static absl::StatusOr<std::unique_ptr<Handoff>> Connect(const std::string& runtime_dir);

  // Opens the session, `hello` says which; its versions are set here. `pool` becomes the pool's descriptor.
  absl::StatusOr<v1::Welcome> Hello(v1::Hello hello, shm::UniqueFd& pool);

  // Hands a descriptor over; the number it is referred to by. It stays the caller's.
  absl::StatusOr<int> PassFile(int fd);
  absl::Status CloseFile(int number);

  // Whether the daemon has stopped for good, by what it said last. To be asked when it does not answer.
  bool HasFarewell();

  // The daemon has closed the connection, or has ended.
  bool HasEnded() const;

  // Ends the session.
  absl::Status Goodbye();

  ~Handoff();

  // The sockets of all sessions that this process has open; they stay their owners'.
  static std::vector<int> OpenSockets();

 private:
  explicit Handoff(shm::UniqueFd socket);
  absl::StatusOr<v1::HandoffReply> Exchange(const v1::HandoffRequest& request, int fd = -1,
                                            shm::UniqueFd* received = nullptr);

  shm::Mutex mutex_;  // one exchange at a time
  bool farewell_ ABSL_GUARDED_BY(mutex_) = false;
  const shm::UniqueFd socket_;
  const SpaceMark mark_;
};

}  // namespace mapbroker
