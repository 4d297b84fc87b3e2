// D1, D7: a file or block device of the host, by a descriptor that a client passed.
#pragma once

#include <cstdint>
#include <memory>

#include "daemon/account.h"
#include "daemon/backing/backing.h"
#include "shm_backend/unique_fd.h"

namespace mapbroker::backing {

// Takes any descriptor, also of a pipe, a directory or a socket: the rules then refuse to map it (M2, M8, M9). May
// block on the file's server. Fails with the errno of fstat. `user`: who passed it; `charge`: what was taken from his
// account for it, until it is closed.
absl::StatusOr<std::shared_ptr<Backing>> OpenHostFile(shm::UniqueFd fd, std::uint32_t user = 0, Charge charge = {});

}  // namespace mapbroker::backing
