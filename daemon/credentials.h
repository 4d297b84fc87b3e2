// Who a peer is to the kernel, and what permission bits let it do.
#pragma once

#include <sys/types.h>

#include <algorithm>
#include <vector>

namespace mapbroker {

// The peer's as the kernel tells them (SO_PEERCRED, SO_PEERGROUPS).
struct Credentials {
  pid_t pid = 0;
  uid_t uid = 0;
  gid_t gid = 0;
  std::vector<gid_t> groups = {};  // supplementary

  bool privileged() const { return uid == 0; }
  bool in_group(gid_t group) const {
    return gid == group || std::find(groups.begin(), groups.end(), group) != groups.end();
  }
};

// Bits of `MayAccess`, as in one digit of a mode.
enum Access : unsigned { kExecute = 1, kWrite = 2, kRead = 4 };

// Whether the permission bits of something that belongs to `uid` and `gid` give all of `wanted` (Access bits).
inline bool MayAccess(const Credentials& who, uid_t uid, gid_t gid, mode_t mode, unsigned wanted) {
  if (who.privileged()) return true;
  const unsigned granted = who.uid == uid ? mode >> 6 : who.in_group(gid) ? mode >> 3 : mode;
  return (granted & wanted) == wanted;
}

}  // namespace mapbroker
