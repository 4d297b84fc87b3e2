// The gRPC server on a socket that we accept on ourselves.
//
// gRPC tells a handler nothing about a Unix peer and cannot take over a listening socket (systemd's), so connections
// are accepted here and given to it, once they have said something and if their user may have them.
#pragma once

#include <systemd/sd-event.h>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <vector>

#include "absl/status/status.h"
#include "daemon/account.h"
#include "daemon/event_source.h"
#include "daemon/session/access.h"
#include "daemon/session/unix_listener.h"
#include "shm_backend/unique_fd.h"

namespace grpc {
class Server;
class Service;
}  // namespace grpc

namespace mapbroker::rpc {

class Calls;

// Connections at a time; every one costs two descriptors. When there are as many, those go first that have said
// nothing.
inline constexpr std::size_t kMaxGrpcConnections = 8192;

// Lives on the thread of its event loop; handlers run on gRPC's threads.
class Server {
 public:
  // Serves `services`, gRPC's health service and reflection to whoever connects to `listener`. All arguments outlive
  // the server. `calls` may be null.
  Server(sd_event* loop, session::UnixListener& listener, const session::Access& access, Accounts& accounts,
         const std::vector<grpc::Service*>& services, Calls* calls = nullptr);
  // Refuses new calls, lets running ones finish for a moment and cancels the rest.
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

 private:
  struct Connection {
    Server* server = nullptr;
    std::uint64_t number = 0;
    uid_t user = 0;
    // Until gRPC has it the socket; then a duplicate of what gRPC has and closes, to see its end.
    shm::UniqueFd socket;
    Charge charge;
    EventSource event;     // the first byte; later the end
    EventSource deadline;  // of silence
  };

  void Accept();
  absl::Status Admit(shm::UniqueFd socket);
  void Queue(Connection& connection);
  void GiveNext();
  void GiveToGrpc(Connection& connection);
  bool DropSilent();
  void Drop(std::uint64_t connection);

  sd_event* const loop_;
  session::UnixListener& listener_;
  const session::Access& access_;
  Accounts& accounts_;
  const Calls* const calls_;
  std::unique_ptr<grpc::Server> server_;
  EventSource accepting_;
  std::uint64_t next_connection_ = 1;
  std::map<std::uint64_t, Connection> connections_;
  std::set<std::uint64_t> silent_;  // those that have said nothing yet
  // Those that have, and that gRPC does not have yet, by user. gRPC takes long over each, so that users take turns: who
  // connects again and again delays himself.
  std::map<uid_t, std::deque<std::uint64_t>> waiting_;
  uid_t last_user_ = 0;
  EventSource giving_;  // null: none waits
};

}  // namespace mapbroker::rpc
