// Closes descriptors that clients passed, away from every request.
#pragma once

#include <cstdint>

#include "daemon/account.h"
#include "shm_backend/unique_fd.h"

namespace mapbroker::backing {

// Closes `fd` soon, on a thread of its user's: close(2) of a file on FUSE or NFS waits for its server, which may be
// hostile. `charge` is given back then. Thread-safe.
void CloseElsewhere(shm::UniqueFd fd, std::uint32_t user, Charge charge = {});

}  // namespace mapbroker::backing
