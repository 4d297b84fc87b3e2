#include "daemon/rpc/server.h"

#include <grpc/grpc.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <grpcpp/server_posix.h>
#include <sys/epoll.h>

#include <chrono>
#include <cstdlib>
#include <utility>

#include "daemon/rpc/calls.h"

namespace mapbroker::rpc {
namespace {

// A Pwrite of 1 MiB and what goes with it; what is larger is refused before it is read.
constexpr int kMaxRequestBytes = (1 << 20) + 4096;

// How long running calls may go on when the server stops.
constexpr std::chrono::seconds kGrace(2);

}  // namespace

Server::Server(sd_event* loop, session::UnixListener& listener, const std::vector<grpc::Service*>& services,
               Calls* calls)
    : listener_(listener) {
  // Never given back: taking the library down with a connection that has just ended may poll for ten seconds, and the
  // process is about to end.
  grpc_init();
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  for (grpc::Service* service : services) builder.RegisterService(service);
  builder.SetMaxReceiveMessageSize(kMaxRequestBytes);
  if (calls != nullptr) {
    std::vector<std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>> interceptors;
    interceptors.push_back(calls->NewInterceptorFactory());
    builder.experimental().SetInterceptorCreators(std::move(interceptors));
  }
  server_ = builder.BuildAndStart();
  if (server_ == nullptr) std::abort();  // without a port of its own nothing can fail but memory

  const auto on_connection = [](sd_event_source*, int, std::uint32_t, void* self) {
    static_cast<Server*>(self)->Accept();
    return 0;
  };
  if (sd_event_add_io(loop, &accepting_, listener_.fd(), EPOLLIN, on_connection, this) < 0) std::abort();
}

Server::~Server() {
  sd_event_source_disable_unref(accepting_);
  server_->Shutdown(std::chrono::system_clock::now() + kGrace);
}

void Server::Accept() {
  shm::UniqueFd connection = listener_.Accept();
  if (connection) grpc::AddInsecureChannelFromFd(server_.get(), connection.release());
}

}  // namespace mapbroker::rpc
