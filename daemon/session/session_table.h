// All sessions, by number and by token.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/btree_map.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "daemon/account.h"
#include "daemon/session/session.h"
#include "shm_backend/ledger.h"
#include "shm_backend/mutex.h"

namespace mapbroker::session {

// Thread-safe. What it holds is recorded in the ledger.
class SessionTable {
 public:
  // Both outlive it. `accounts`: where users are charged, null for nowhere.
  explicit SessionTable(shm::Ledger& ledger, Accounts* accounts = nullptr)
      : ledger_(ledger), accounts_(accounts), nobody_(accounts == nullptr ? nullptr : &accounts->Of(kNobody)) {}

  struct Opened {
    std::shared_ptr<Session> session;
    std::string token;  // secret: never logged
  };

  // Numbers start at 1 and are not reused. EAGAIN when the user has as many as he may, unless this one `replaces`
  // another; ENOSPC. REQUIRES: `space` is an open address space of the peer.
  absl::StatusOr<Opened> Open(const Credentials& peer, bool read_only, nommu::SpaceId space,
                              const std::string& nonce = "", bool replaces = false);
  // One that a daemon before opened and that was perhaps never answered: by the nonce of its Hello. Null if there is
  // none.
  std::optional<Opened> FindByNonce(const Credentials& peer, const std::string& nonce) const;

  // Whose calls are those that carry no token; null where nobody counts.
  Account* nobody() const { return nobody_; }

  // Calls `session` for each that was recorded, and is in the table again, with when its process was started, 0 for one
  // that was closed. Numbers go on after them. DataLoss.
  absl::Status Restore(
      const std::function<absl::Status(const std::shared_ptr<Session>&, std::uint64_t start_time)>& session);

  // S2: marks all sessions of a process.
  void SetTraced(pid_t pid, bool traced);

  // Null if there is none.
  std::shared_ptr<Session> FindById(std::uint64_t id) const;

  // The session whose token, in hexadecimal, this is; null if there is none. The secret part is compared in constant
  // time.
  std::shared_ptr<Session> Find(const std::string& hex_token) const;

  bool HasProcess(pid_t pid) const;

  // At most `most` sessions with numbers above `after`, by number.
  std::vector<std::shared_ptr<Session>> List(std::uint64_t after, std::size_t most) const;

  // From now on the token is worth nothing, also to a later daemon; the session stays until its process ends, which
  // with `kill` is now. ESRCH: there is no such session; ENOSPC; EPERM: the process may not be killed.
  absl::Status Revoke(std::uint64_t id, bool kill);

  // From now on, also for the daemons to come, the token is worth nothing.
  void Close(std::uint64_t id);
  // All it had is gone: so are its records. REQUIRES: it was closed.
  void Forget(std::uint64_t id);

  // Those that were closed and not forgotten yet too.
  std::size_t size() const;

 private:
  struct Entry {
    std::shared_ptr<Session> session;
    std::string token;
    std::uint64_t start_time = 0;  // of the process
    std::string nonce = {};
    bool ended = false;
  };

  static shm::Ledger::Change RecordOf(const Entry& entry);

  Account* AccountOf(uid_t user) const { return accounts_ == nullptr ? nullptr : &accounts_->Of(user); }

  shm::Ledger& ledger_;
  Accounts* const accounts_;
  Account* const nobody_;
  mutable shm::Mutex mutex_;
  std::uint64_t next_id_ ABSL_GUARDED_BY(mutex_) = 1;
  std::size_t closed_ ABSL_GUARDED_BY(mutex_) = 0;  // and not forgotten yet
  absl::btree_map<std::uint64_t, Entry> sessions_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<std::string, std::uint64_t> restored_ ABSL_GUARDED_BY(mutex_);  // by nonce
};

}  // namespace mapbroker::session
