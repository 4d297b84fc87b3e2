// Unix sockets without the library, for those that speak to the daemon as it never would.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "shm_backend/unique_fd.h"

namespace mapbroker::testing {

// A connection to the socket at `path`, of type SOCK_STREAM or SOCK_SEQPACKET; a send or receive fails with EAGAIN
// after `patience`. Empty, with errno set, if there is none.
shm::UniqueFd ConnectTo(const std::string& path, int type, std::chrono::seconds patience);

// A socket of that type at `path`. Throws where it cannot be.
shm::UniqueFd Bound(const std::string& path, int type);

// Sends bytes as one packet with descriptors. False, with errno set, if it cannot be sent.
bool SendBytes(const shm::UniqueFd& socket, const std::string& bytes, const std::vector<int>& fds = {});

}  // namespace mapbroker::testing
