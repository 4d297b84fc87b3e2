// Serves Noop on SOCKET the way mapbrokerd serves its own services, until it is killed.
#include <sys/socket.h>
#include <systemd/sd-event.h>

#include <cstdio>
#include <cstdlib>

#include "daemon/rpc/server.h"
#include "noop.grpc.pb.h"

namespace {

class NoopService final : public mapbroker::bench::Noop::Service {
  grpc::Status Call(grpc::ServerContext*, const mapbroker::bench::NoopMessage*,
                    mapbroker::bench::NoopMessage*) override {
    return grpc::Status::OK;
  }
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  auto listener = mapbroker::session::UnixListener::Listen(argv[1], SOCK_STREAM, 0600);
  sd_event* loop = nullptr;
  if (!listener.ok() || sd_event_default(&loop) < 0) return EXIT_FAILURE;
  NoopService service;
  const mapbroker::session::Access access;
  mapbroker::Accounts accounts;
  const mapbroker::rpc::Server server(loop, *listener, access, accounts, {&service});
  return sd_event_loop(loop);
}
