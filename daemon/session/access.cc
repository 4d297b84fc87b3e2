#include "daemon/session/access.h"

#include <algorithm>
#include <cerrno>

#include "absl/strings/str_cat.h"
#include "daemon/nommu/refusal.h"

namespace mapbroker::session {

using nommu::Refuse;

bool AccessRules::Who::Has(const Credentials& who) const {
  return users.contains(who.uid) ||
         std::any_of(groups.begin(), groups.end(), [&](gid_t group) { return who.in_group(group); });
}

absl::Status Access::MayConnect(const Credentials& who) const {
  shm::MutexLock lock(mutex_);
  if (rules_.deny.Has(who)) {
    return Refuse(EACCES, "",
                  absl::StrCat("user ", who.uid,
                               " or a group of his is denied (access.deny_users, deny_groups): ask the "
                               "administrator"));
  }
  if (rules_.allow.empty() || rules_.allow.Has(who) || who.privileged()) return absl::OkStatus();
  return Refuse(EACCES, "",
                absl::StrCat("neither user ", who.uid,
                             " nor a group of his is allowed (access.allow_users, "
                             "allow_groups): ask the administrator"));
}

absl::Status Access::MayOpen(const Credentials& who, bool read_only) const {
  shm::MutexLock lock(mutex_);
  if (read_only || !rules_.read_only.Has(who)) return absl::OkStatus();
  return Refuse(EACCES, "",
                absl::StrCat("user ", who.uid,
                             " may only read (access.read_only_users, read_only_groups): connect "
                             "read_only"));
}

}  // namespace mapbroker::session
