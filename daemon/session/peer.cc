#include "daemon/session/peer.h"

#include <sys/socket.h>

#include <cerrno>

#include "daemon/nommu/refusal.h"

namespace mapbroker::session {

absl::StatusOr<Credentials> PeerOf(int socket) {
  ucred peer{};
  socklen_t size = sizeof(peer);
  if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0 || peer.pid <= 0) {
    return nommu::Refuse(EACCES, "",
                         "the process is not visible to the daemon: run both in the same or a nested PID namespace");
  }
  Credentials credentials{peer.pid, peer.uid, peer.gid, {}};
  // Asked twice: for how many there are, and for them.
  socklen_t bytes = 0;
  getsockopt(socket, SOL_SOCKET, SO_PEERGROUPS, nullptr, &bytes);
  credentials.groups.resize(bytes / sizeof(gid_t));
  if (getsockopt(socket, SOL_SOCKET, SO_PEERGROUPS, credentials.groups.data(), &bytes) != 0) bytes = 0;
  credentials.groups.resize(bytes / sizeof(gid_t));
  return credentials;
}

}  // namespace mapbroker::session
