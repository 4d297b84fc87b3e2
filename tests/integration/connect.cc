#include "tests/integration/connect.h"

#include <stdexcept>
#include <utility>

namespace mapbroker::testing {

Client Connect(const Daemon& daemon, ConnectOptions options) {
  options.runtime_dir = daemon.runtime_dir();
  absl::StatusOr<Client> client = Client::Connect(options);
  if (!client.ok()) {
    throw std::runtime_error("no session: " + client.status().ToString() + "\nthe daemon's log:\n" + daemon.Log());
  }
  return *std::move(client);
}

}  // namespace mapbroker::testing
