// One session with the daemon, as both faces of the library use it.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>

#include "absl/status/statusor.h"
#include "client/src/attachment.h"
#include "client/src/handoff.h"
#include "client/src/rpc_stub.h"
#include "mapbroker/client.h"
#include "shm_backend/mutex.h"

namespace mapbroker {

class Session;

// A descriptor that the daemon has; given back when the last mapping of it goes.
class PassedFile {
 public:
  // `epoch`: of the connection by which it was passed.
  PassedFile(Session& session, int number, std::uint64_t epoch) : session_(session), number_(number), epoch_(epoch) {}
  ~PassedFile();
  PassedFile(const PassedFile&) = delete;
  PassedFile& operator=(const PassedFile&) = delete;
  int number() const { return number_; }

 private:
  Session& session_;
  const int number_;
  const std::uint64_t epoch_;
};

// A granted and attached mapping.
struct Mapped {
  v1::MmapResponse grant;
  std::shared_ptr<Attachment> attachment;
  std::shared_ptr<PassedFile> file;  // null: anonymous
};

// Thread-safe. Ends the session when destroyed.
class Session {
 public:
  static absl::StatusOr<std::shared_ptr<Session>> Open(const ConnectOptions& options);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  absl::StatusOr<Mapped> Map(const MapOptions& options);
  // The same of the file with this number in the session, whatever file `options` name.
  absl::StatusOr<Mapped> MapNumber(const MapOptions& options, int number);
  // Calls `use` with the number of the file that `options` name, in this session; EBADF if they name none.
  absl::Status WithFile(const MapOptions& options, const std::function<absl::Status(int)>& use);
  // shmat(2) and shmdt(2).
  absl::StatusOr<Mapped> Attach(int id, int flags, std::uint64_t address);
  absl::Status Detach(std::uint64_t address);
  // By pool address; says nothing of the attachment.
  absl::Status Unmap(std::uint64_t address, std::uint64_t length);

  // mremap(2) by pool address (U3); the new length in bytes.
  absl::StatusOr<std::uint64_t> Remap(std::uint64_t address, std::uint64_t old_length, std::uint64_t new_length,
                                      int flags, std::uint64_t new_address);

  // Where the whole pool is attached; null if it is not.
  std::byte* pool_base() const { return whole_pool_ == nullptr ? nullptr : whole_pool_->At(0); }
  const v1::Welcome& welcome() const { return welcome_; }
  int pool() const { return pool_.get(); }
  RpcStub& stub() { return *stub_; }
  // Gives back the number of one of the daemon's files.
  void CloseNumber(int number);
  // Counts connections. After a loss of that of `seen` the session is taken up again with the daemon that follows,
  // within reconnect_timeout; nothing is done if it has been.
  std::uint64_t epoch() const { return epoch_; }
  absl::Status TakeUpAgain(std::uint64_t seen) { return Reconnect(seen, reconnect_timeout_); }

 private:
  friend class PassedFile;
  // What makes two descriptors the same to the daemon: the file and how it is open.
  using FileKey = std::tuple<dev_t, ino_t, int>;

  Session() = default;
  absl::Status Reconnect(std::uint64_t seen, std::chrono::milliseconds timeout);
  absl::Status TakeUp();
  std::shared_ptr<Handoff> handoff() const;
  absl::StatusOr<std::shared_ptr<PassedFile>> Pass(int fd);
  absl::Status AttachGrant(Mapped& mapped);

  std::string runtime_dir_;
  bool read_only_ = false;
  std::chrono::milliseconds reconnect_timeout_{};
  shm::Mutex reconnecting_;  // before mutex_
  std::optional<std::chrono::steady_clock::time_point> lost_at_ ABSL_GUARDED_BY(reconnecting_);
  std::atomic<std::uint64_t> epoch_ = 1;  // counts connections
  std::unique_ptr<RpcStub> stub_;
  v1::Welcome welcome_;
  shm::UniqueFd pool_;
  std::shared_ptr<Attachment> whole_pool_;  // null: each mapping is attached by itself
  mutable shm::Mutex mutex_;
  std::shared_ptr<Handoff> handoff_ ABSL_GUARDED_BY(mutex_);
  std::map<FileKey, std::weak_ptr<PassedFile>> files_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace mapbroker
