// Who is at the other end of a Unix socket, as the kernel tells.
#pragma once

#include "absl/status/statusor.h"
#include "daemon/credentials.h"

namespace mapbroker::session {

// EACCES if the process is not visible to this one.
absl::StatusOr<Credentials> PeerOf(int socket);

}  // namespace mapbroker::session
