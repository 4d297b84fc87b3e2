// The gRPC server on a socket that we accept on ourselves.
//
// gRPC tells a handler nothing about a Unix peer and cannot take over a listening socket (systemd's), so connections
// are accepted here and given to it.
#pragma once

#include <systemd/sd-event.h>

#include <memory>
#include <vector>

#include "daemon/session/unix_listener.h"

namespace grpc {
class Server;
class Service;
}  // namespace grpc

namespace mapbroker::rpc {

class Calls;

// Lives on the thread of its event loop; handlers run on gRPC's threads.
class Server {
 public:
  // Serves `services`, gRPC's health service and reflection to whoever connects to `listener`. All arguments outlive
  // the server. `calls` may be null.
  Server(sd_event* loop, session::UnixListener& listener, const std::vector<grpc::Service*>& services,
         Calls* calls = nullptr);
  // Refuses new calls, lets running ones finish for a moment and cancels the rest.
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

 private:
  void Accept();

  session::UnixListener& listener_;
  std::unique_ptr<grpc::Server> server_;
  sd_event_source* accepting_ = nullptr;
};

}  // namespace mapbroker::rpc
