// D1, D7: a file or block device of the host, by a descriptor that a client passed.
#pragma once

#include <memory>

#include "daemon/backing/backing.h"
#include "shm_backend/unique_fd.h"

namespace mapbroker::backing {

// Takes any descriptor, also of a pipe, a directory or a socket: the rules then refuse to map it (M2, M8, M9). May
// block on the file's server. Fails with the errno of fstat.
absl::StatusOr<std::shared_ptr<Backing>> OpenHostFile(shm::UniqueFd fd);

}  // namespace mapbroker::backing
