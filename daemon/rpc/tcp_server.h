// The gRPC server on a TCP address: mutual TLS, and calls of those alone whose certificate has a role.
#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "daemon/config.h"
#include "daemon/events.h"

namespace grpc {
class Server;
class Service;
}  // namespace grpc

namespace mapbroker::rpc {

class Calls;

class TcpServer {
 public:
  // The certificates are read now and not again. Refusals name the key of the configuration: a file that cannot be read
  // or is no certificate or key, a key that is another certificate's, an address that cannot be listened on. All
  // arguments but the configuration outlive the server.
  static absl::StatusOr<std::unique_ptr<TcpServer>> Listen(const Config::Tcp& config,
                                                           const std::vector<grpc::Service*>& services, Calls& calls,
                                                           Events& events);
  ~TcpServer();
  TcpServer(const TcpServer&) = delete;
  TcpServer& operator=(const TcpServer&) = delete;

  // With the port that was chosen.
  const Endpoint& endpoint() const { return endpoint_; }

 private:
  TcpServer();

  Endpoint endpoint_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace mapbroker::rpc
