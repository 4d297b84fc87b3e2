#include "client/src/handoff.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/src/status.h"
#include "proto/handoff_packet.h"

namespace mapbroker {
namespace {

// The daemon answers at once, whatever its files do; one that does not for this long is stopped or stuck.
constexpr timeval kReplyTimeout{.tv_sec = 10, .tv_usec = 0};

std::string WhyNoDaemon(int error) {
  if (error == ENOENT || error == ECONNREFUSED) return "no mapbrokerd serves it: start one, or name its --runtime-dir";
  if (error == EACCES) return "its sockets may not be used by this user: ask for membership of the socket's group";
  return std::strerror(error);
}

// All of one address space.
struct Open {
  const SpaceMark mark;
  shm::Mutex mutex;
  std::set<const Handoff*> handoffs ABSL_GUARDED_BY(mutex);
};
// Never destroyed: sessions may outlive main. A forked child gets its own, since another thread may have held the
// mutex of its parent's.
Open& AllOpen() {
  static std::atomic<Open*> present = nullptr;
  Open* open = present.load();
  while (open == nullptr || !open->mark.IsHere()) {
    auto fresh = std::make_unique<Open>();
    if (present.compare_exchange_strong(open, fresh.get())) return *fresh.release();
  }
  return *open;
}

}  // namespace

Handoff::Handoff(shm::UniqueFd socket) : socket_(std::move(socket)) {
  shm::MutexLock lock(AllOpen().mutex);
  AllOpen().handoffs.insert(this);
}

Handoff::~Handoff() {
  shm::MutexLock lock(AllOpen().mutex);
  AllOpen().handoffs.erase(this);
}

std::vector<int> Handoff::OpenSockets() {
  std::vector<int> sockets;
  shm::MutexLock lock(AllOpen().mutex);
  for (const Handoff* handoff : AllOpen().handoffs) sockets.push_back(handoff->socket_.get());
  return sockets;
}

absl::StatusOr<std::unique_ptr<Handoff>> Handoff::Connect(const std::string& runtime_dir) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string path = absl::StrCat(runtime_dir, "/", kHandoffSocketName);
  if (path.size() >= sizeof(address.sun_path)) {
    return MakeStatus(ENAMETOOLONG, absl::StrCat("socket path ", path, " is longer than ", sizeof(address.sun_path) - 1,
                                                 " bytes: use a shorter runtime directory"));
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  shm::UniqueFd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!socket) return MakeStatus(errno, absl::StrCat("cannot make a socket: ", std::strerror(errno)));
  setsockopt(socket.get(), SOL_SOCKET, SO_RCVTIMEO, &kReplyTimeout, sizeof(kReplyTimeout));
  setsockopt(socket.get(), SOL_SOCKET, SO_SNDTIMEO, &kReplyTimeout, sizeof(kReplyTimeout));
  if (connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    const int error = errno;
    return NoDaemon(error, absl::StrCat("cannot connect to ", path, ": ", WhyNoDaemon(error)));
  }
  return std::unique_ptr<Handoff>(new Handoff(std::move(socket)));
}

absl::StatusOr<v1::HandoffReply> Handoff::Exchange(const v1::HandoffRequest& request, int fd, shm::UniqueFd* received) {
  if (absl::Status status = mark_.Check(); !status.ok()) return status;
  shm::MutexLock lock(mutex_);
  v1::HandoffReply reply;
  int error = SendHandoffPacket(socket_.get(), request, fd);
  if (error == 0) {
    HandoffPacket packet = ReceiveHandoffPacket(socket_.get(), reply);
    error = packet.error;
    if (received != nullptr) *received = std::move(packet.fd);
  }
  if (error == EAGAIN) return NoDaemon(ETIMEDOUT, "the daemon does not answer on its handoff socket");
  if (error != 0) return NoDaemon(error, absl::StrCat("the handoff connection is lost: ", std::strerror(error)));
  if (reply.has_error()) return FromWire(reply.error());
  if (reply.has_farewell() && !request.has_goodbye()) {
    farewell_ = true;
    return NoDaemon(ECONNRESET, "the daemon was stopped");
  }
  return reply;
}

absl::StatusOr<v1::Welcome> Handoff::Hello(v1::Hello hello, shm::UniqueFd& pool) {
  hello.set_min_version(kMinProtocolVersion);
  hello.set_max_version(kMaxProtocolVersion);
  v1::HandoffRequest request;
  *request.mutable_hello() = std::move(hello);
  absl::StatusOr<v1::HandoffReply> reply = Exchange(request, -1, &pool);
  if (!reply.ok()) return reply.status();
  if (!reply->has_welcome() || !pool) return MakeStatus(EPROTO, "the daemon's welcome carries no pool");
  return reply->welcome();
}

absl::StatusOr<int> Handoff::PassFile(int fd) {
  v1::HandoffRequest request;
  request.mutable_pass_file();
  absl::StatusOr<v1::HandoffReply> reply = Exchange(request, fd);
  if (!reply.ok()) return reply.status();
  return reply->file_passed().fd();
}

absl::Status Handoff::CloseFile(int number) {
  v1::HandoffRequest request;
  request.mutable_close_file()->set_fd(number);
  return Exchange(request).status();
}

bool Handoff::HasFarewell() {
  shm::MutexLock lock(mutex_);
  char next;
  if (farewell_) return true;
  if (recv(socket_.get(), &next, sizeof(next), MSG_PEEK | MSG_DONTWAIT) <= 0) return false;
  v1::HandoffReply reply;
  farewell_ = ReceiveHandoffPacket(socket_.get(), reply).error == 0 && reply.has_farewell();
  return farewell_;
}

bool Handoff::HasEnded() const {
  pollfd socket{.fd = socket_.get(), .events = POLLRDHUP, .revents = 0};
  return poll(&socket, 1, 0) == 1 && (socket.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
}

absl::Status Handoff::Goodbye() {
  v1::HandoffRequest request;
  request.mutable_goodbye();
  return Exchange(request).status();
}

}  // namespace mapbroker
