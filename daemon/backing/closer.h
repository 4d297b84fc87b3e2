// Closes descriptors that clients passed, away from every request.
#pragma once

#include "shm_backend/unique_fd.h"

namespace mapbroker::backing {

// Closes `fd` soon, on a thread of its own: close(2) of a file on FUSE or NFS waits for its server, which may be
// hostile. Thread-safe.
void CloseElsewhere(shm::UniqueFd fd);

}  // namespace mapbroker::backing
