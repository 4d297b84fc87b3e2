#include "tests/integration/connect.h"

#include <cstdlib>
#include <iostream>
#include <utility>

namespace mapbroker::testing {

Client Connect(const Daemon& daemon, ConnectOptions options) {
  options.runtime_dir = daemon.runtime_dir();
  absl::StatusOr<Client> client = Client::Connect(options);
  if (!client.ok()) {
    std::cerr << "no session: " << client.status() << "\nthe daemon's log:\n" << daemon.Log();
    std::abort();
  }
  return *std::move(client);
}

}  // namespace mapbroker::testing
