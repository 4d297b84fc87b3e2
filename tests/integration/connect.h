// Sessions of the test's own process.
#pragma once

#include "mapbroker/client.h"
#include "tests/integration/daemon.h"

namespace mapbroker::testing {

// Throws, which fails the test, if there is no session to be had.
Client Connect(const Daemon& daemon, ConnectOptions options = {});

}  // namespace mapbroker::testing
