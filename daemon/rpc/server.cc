#include "daemon/rpc/server.h"

#include <fcntl.h>
#include <grpc/grpc.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <grpcpp/server_posix.h>
#include <poll.h>
#include <sys/epoll.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <utility>

#include "daemon/nommu/refusal.h"
#include "daemon/rpc/calls.h"
#include "daemon/session/peer.h"
#include "spdlog/spdlog.h"

namespace mapbroker::rpc {
namespace {

// A Pwrite of 1 MiB and what goes with it; what is larger is refused before it is read.
constexpr int kMaxRequestBytes = (1 << 20) + 4096;

// Calls under way on one connection; a client's further calls wait in its library.
constexpr int kMaxStreams = 256;

// Bytes of a call's metadata: a token and a number take a hundred.
constexpr int kMaxMetadata = 4096;

// Bytes of what gRPC buffers for all connections: some thousand idle ones, or a few hundred that send as much as they
// may. Beyond it gRPC drops the calls of those who have most.
constexpr std::size_t kMaxBuffers = std::size_t{256} << 20;

// Threads of gRPC's, each of which a call may hold: as many as four users may have under way (limits.calls).
constexpr int kMaxThreads = 4096;

// Connections that are accepted in one turn. Nearly all that can wait are: who finds the queue full is refused by the
// kernel, and has to come again.
constexpr int kMaxAccepts = 256;

// A peer that connects and says nothing is dropped after this; a client sends HTTP/2's preface at once.
constexpr std::uint64_t kSilenceUsec = 5'000'000;

// How long running calls may go on when the server stops.
constexpr std::chrono::seconds kGrace(2);

}  // namespace

Server::Server(sd_event* loop, session::UnixListener& listener, const session::Access& access, Accounts& accounts,
               const std::vector<grpc::Service*>& services, Calls* calls)
    : loop_(loop), listener_(listener), access_(access), accounts_(accounts), calls_(calls) {
  // Never given back: taking the library down with a connection that has just ended may poll for ten seconds, and the
  // process is about to end.
  grpc_init();
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  for (grpc::Service* service : services) builder.RegisterService(service);
  builder.SetMaxReceiveMessageSize(kMaxRequestBytes);
  builder.SetResourceQuota(grpc::ResourceQuota("mapbrokerd").Resize(kMaxBuffers).SetMaxThreads(kMaxThreads));
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kMaxStreams);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, kMaxMetadata);
  if (calls != nullptr) {
    std::vector<std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>> interceptors;
    interceptors.push_back(calls->NewInterceptorFactory());
    builder.experimental().SetInterceptorCreators(std::move(interceptors));
  }
  server_ = builder.BuildAndStart();
  if (server_ == nullptr) std::abort();  // without a port of its own nothing can fail but memory

  accepting_ = OnEvents<[](Server& self) { self.Accept(); }>(loop_, listener_.fd(), EPOLLIN, *this);
  if (accepting_ == nullptr) std::abort();
}

Server::~Server() {
  accepting_.reset();
  connections_.clear();
  // gRPC waits for idle connections too, whose clients may not look at them for seconds.
  const bool busy = calls_ == nullptr || calls_->under_way() != 0;
  server_->Shutdown(std::chrono::system_clock::now() + (busy ? kGrace : std::chrono::seconds(0)));
}

void Server::Accept() {
  for (int accepted = 0; accepted < kMaxAccepts; ++accepted) {
    shm::UniqueFd socket = listener_.Accept();
    if (!socket) return;
    // gRPC has no words for a connection that is not wanted, so it is closed. The reason was told on the handoff
    // socket, where whoever has a token has been before.
    if (const absl::Status admitted = Admit(std::move(socket)); !admitted.ok()) {
      spdlog::debug("a gRPC connection is closed: {}", std::string(admitted.message()));
    }
  }
}

absl::Status Server::Admit(shm::UniqueFd socket) {
  const absl::StatusOr<Credentials> peer = session::PeerOf(socket.get());
  if (!peer.ok()) return peer.status();
  if (absl::Status status = access_.MayConnect(*peer); !status.ok()) return status;
  absl::StatusOr<Charge> charge = Charge::Take(&accounts_.Of(peer->uid), Resource::kConnections, 1);
  if (!charge.ok()) return charge.status();
  if (connections_.size() >= kMaxGrpcConnections && !DropSilent()) {
    return nommu::Refuse(EAGAIN, "", "there are as many connections as the daemon takes");
  }

  const std::uint64_t number = next_connection_++;
  silent_.insert(number);
  Connection& connection = connections_[number];
  connection.server = this;
  connection.number = number;
  connection.user = peer->uid;
  connection.socket = std::move(socket);
  connection.charge = *std::move(charge);
  connection.event = OnEvents<[](Connection& ready) { ready.server->Queue(ready); }>(loop_, connection.socket.get(),
                                                                                     EPOLLIN, connection);
  connection.deadline =
      After<[](Connection& silent) { silent.server->Drop(silent.number); }>(loop_, kSilenceUsec, connection);
  if (connection.event != nullptr && connection.deadline != nullptr) return absl::OkStatus();
  Drop(number);
  return nommu::Refuse(ENOMEM, "", "it cannot be watched");
}

void Server::Queue(Connection& connection) {
  silent_.erase(connection.number);
  connection.deadline.reset();
  connection.event.reset();
  waiting_[connection.user].push_back(connection.number);
  if (giving_ == nullptr) giving_ = InTurns<[](Server& self) { self.GiveNext(); }>(loop_, *this);
  if (giving_ == nullptr) std::abort();
}

void Server::GiveNext() {
  auto next = waiting_.upper_bound(last_user_);
  if (next == waiting_.end()) next = waiting_.begin();
  last_user_ = next->first;
  const std::uint64_t number = next->second.front();
  next->second.pop_front();
  if (next->second.empty()) waiting_.erase(next);
  if (waiting_.empty()) giving_.reset();
  GiveToGrpc(connections_.at(number));
}

void Server::GiveToGrpc(Connection& connection) {
  pollfd peer{.fd = connection.socket.get(), .events = 0, .revents = 0};
  if (poll(&peer, 1, 0) != 0) return Drop(connection.number);  // it has hung up meanwhile
  shm::UniqueFd watched(fcntl(connection.socket.get(), F_DUPFD_CLOEXEC, 0));
  if (!watched) return Drop(connection.number);
  shm::UniqueFd socket = std::exchange(connection.socket, std::move(watched));
  // Not what comes in: that is gRPC's.
  connection.event = OnEvents<[](Connection& ended) { ended.server->Drop(ended.number); }>(
      loop_, connection.socket.get(), EPOLLHUP, connection);
  if (connection.event == nullptr) return Drop(connection.number);
  grpc::AddInsecureChannelFromFd(server_.get(), socket.release());
}

bool Server::DropSilent() {
  if (silent_.empty()) return false;
  Drop(*silent_.begin());
  return true;
}

void Server::Drop(std::uint64_t connection) {
  silent_.erase(connection);
  connections_.erase(connection);
}

}  // namespace mapbroker::rpc
