// The daemon's metrics for Prometheus, over HTTP.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "daemon/broker.h"
#include "daemon/endpoint.h"
#include "daemon/events.h"
#include "daemon/rpc/calls.h"
#include "daemon/session/session_table.h"
#include "shm_backend/ledger.h"

namespace mapbroker {

// Serves /metrics on threads of its own. The numbers are gathered when they are asked for.
class Metrics {
 public:
  // FailedPrecondition: the address cannot be listened on. All arguments but the address outlive it.
  static absl::StatusOr<std::unique_ptr<Metrics>> Listen(const Endpoint& endpoint, const Broker& broker,
                                                         const session::SessionTable& sessions,
                                                         const shm::Ledger& ledger, const Events& events,
                                                         const rpc::Calls& calls);
  ~Metrics();
  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;

  // With the port that was chosen.
  const Endpoint& endpoint() const { return endpoint_; }

 private:
  struct Server;
  Metrics();

  Endpoint endpoint_;
  std::unique_ptr<Server> server_;
};

}  // namespace mapbroker
