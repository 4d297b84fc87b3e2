// What the service manager hands over at the start, and what it is to keep for the next daemon.
#pragma once

#include "shm_backend/unique_fd.h"

namespace mapbroker {

// Each is empty if it was not handed over.
struct Activation {
  shm::UniqueFd handoff, grpc;  // listening Unix sockets, SOCK_SEQPACKET and SOCK_STREAM
  shm::UniqueFd pool;           // out of the file-descriptor store

  // Takes every descriptor that the service manager passed, so that none is inherited. What is none of the three, or
  // comes a second time, is closed with a line in the log. Once, before there are threads.
  static Activation Take();
};

// The service manager keeps the pool until the service is stopped for good, in place of what it kept. Without a service
// manager this and the next do nothing.
void StorePool(int fd);
void ForgetStoredPool();

}  // namespace mapbroker
