// Who asks: one client process as the daemon knows it.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "absl/container/btree_set.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/statusor.h"
#include "daemon/account.h"
#include "daemon/backing/backing.h"
#include "daemon/credentials.h"
#include "daemon/nommu/memory_map.h"
#include "shm_backend/mutex.h"
#include "shm_backend/unique_fd.h"

namespace mapbroker::session {

// Descriptors that one session may have passed and not closed: as many as a process may have open by default.
inline constexpr std::size_t kMaxFilesPerSession = 1024;

// Which call of a session this is, so that one that is made again is not carried out twice.
struct RequestId {
  std::uint64_t id = 0;    // 0: it will not be made again
  std::uint64_t done = 0;  // all calls below it are answered
  bool again = false;
};

// Thread-safe.
class Session {
 public:
  // `first_number`: where the numbers of its files begin. `account`: its user's, null where nobody counts; `charge`:
  // what was taken from that for the session itself.
  Session(std::uint64_t id, const Credentials& peer, bool read_only, nommu::SpaceId space,
          std::uint32_t first_number = 0, Account* account = nullptr, Charge charge = {})
      : id_(id),
        peer_(peer),
        read_only_(read_only),
        space_(space),
        account_(account),
        charge_(std::move(charge)),
        next_number_(first_number) {}

  std::uint64_t id() const { return id_; }
  const Credentials& peer() const { return peer_; }
  bool read_only() const { return read_only_; }
  nommu::SpaceId space() const { return space_; }
  Account* account() const { return account_; }
  // S2: it is marked as traced, or its process is, as was seen within the last 10 ms: a look takes longer than all the
  // rest of a call.
  bool IsTraced();
  bool marked_traced() const { return traced_; }
  void set_traced(bool traced) { traced_ = traced; }

  // Ended by an administrator: nothing it asks is done any more, and what it has mapped is held until its process ends.
  bool revoked() const { return revoked_; }
  void set_revoked() { revoked_ = true; }

  // Calls that named it.
  void CountCall() { calls_.fetch_add(1, std::memory_order_relaxed); }
  std::uint64_t calls() const { return calls_.load(std::memory_order_relaxed); }

  // Calls that are being carried out. False: this one is already.
  bool BeginRequest(std::uint64_t id);
  void EndRequest(std::uint64_t id);
  // Calls whose results are recorded; those below `done` are taken out.
  void NoteResult(std::uint64_t id);
  std::vector<std::uint64_t> TakeResultsBelow(std::uint64_t done);

  // Takes a descriptor; the number it is referred to by. EMFILE when there are kMaxFilesPerSession, or the user has as
  // many as he may.
  absl::StatusOr<int> AddFile(shm::UniqueFd fd);
  // The same for a file that is known already.
  absl::StatusOr<int> AddFile(std::shared_ptr<backing::Backing> backing);

  // Takes over all files of another session, which has none then (X4). REQUIRES: this one has none.
  void TakeFiles(Session& from);

  // How many files it has open.
  std::size_t CountFiles();

  // The files of the daemon's own, and those that were looked at, by number.
  std::vector<std::pair<int, std::shared_ptr<backing::Backing>>> OpenedFiles();
  // A file that was recorded, under its number.
  void RestoreFile(int number, std::shared_ptr<backing::Backing> backing);

  // EBADF if there is no such number.
  absl::Status CloseFile(int number);

  // The file behind a number, null if there is none. Looks at the file when it is first used, which may block on its
  // server: not to be called under a lock.
  std::shared_ptr<backing::Backing> File(int number);

 private:
  struct PassedFile {
    ~PassedFile();
    std::once_flag looked_at;
    uid_t user = 0;  // who passed it
    shm::UniqueFd fd;
    std::shared_ptr<backing::Backing> backing;
    Charge charge;
  };

  absl::StatusOr<int> Add(std::shared_ptr<PassedFile> file);

  const std::uint64_t id_;
  const Credentials peer_;
  const bool read_only_;
  const nommu::SpaceId space_;
  Account* const account_;
  const Charge charge_;
  std::atomic<bool> traced_ = false;
  std::atomic<bool> seen_traced_ = false;
  std::atomic<bool> revoked_ = false;
  std::atomic<std::uint64_t> calls_ = 0;
  std::atomic<std::chrono::steady_clock::time_point> look_again_{};
  shm::Mutex mutex_;
  std::uint32_t next_number_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_set<std::uint64_t> running_ ABSL_GUARDED_BY(mutex_);
  absl::btree_set<std::uint64_t> results_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<int, std::shared_ptr<PassedFile>> files_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace mapbroker::session
