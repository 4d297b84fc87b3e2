// Who may connect, and who only to read.
#pragma once

#include <sys/types.h>

#include <set>

#include "absl/status/status.h"
#include "daemon/credentials.h"
#include "shm_backend/mutex.h"

namespace mapbroker::session {

// By user and group, supplementary groups included. Nothing allowed is everybody; root is allowed unless he is denied,
// since he could help himself.
struct AccessRules {
  struct Who {
    std::set<uid_t> users;
    std::set<gid_t> groups;

    bool empty() const { return users.empty() && groups.empty(); }
    bool Has(const Credentials& who) const;
  };
  Who allow, deny, read_only;  // deny comes before allow
};

// Thread-safe.
class Access {
 public:
  explicit Access(AccessRules rules = {}) : rules_(std::move(rules)) {}

  // For whoever connects from now on.
  void Set(const AccessRules& rules) {
    shm::MutexLock lock(mutex_);
    rules_ = rules;
  }

  // EACCES.
  absl::Status MayConnect(const Credentials& who) const;
  // EACCES for a session that may write, of one who may only read.
  absl::Status MayOpen(const Credentials& who, bool read_only) const;

 private:
  mutable shm::Mutex mutex_;
  AccessRules rules_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace mapbroker::session
