#include "daemon/session/handoff_server.h"

#include <signal.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "daemon/backing/closer.h"
#include "daemon/nommu/refusal.h"
#include "daemon/process.h"
#include "daemon/session/peer.h"
#include "daemon/session/wire_error.h"
#include "proto/handoff_packet.h"
#include "shm_backend/failure_point.h"

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77  // Linux 6.5; older headers lack it
#endif

namespace mapbroker::session {
namespace {

using nommu::Refuse;

// A peer that connects and says nothing is dropped after this; a client says Hello at once.
constexpr std::uint64_t kHelloDeadlineUsec = 5'000'000;

// Bytes; 16 cannot be met by chance.
constexpr std::size_t kMaxNonce = 32;

// A descriptor of the very process that connected.
absl::StatusOr<shm::UniqueFd> PidfdOf(int socket, pid_t pid) {
  int fd = -1;
  socklen_t size = sizeof(fd);
  const bool fails = shm::FailAt(shm::Point::kPidfd) != 0;
  if (!fails && getsockopt(socket, SOL_SOCKET, SO_PEERPIDFD, &fd, &size) == 0) return shm::UniqueFd(fd);
  // glibc 2.36 declares pidfd_open without C linkage.
  shm::UniqueFd opened(fails ? -1 : static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  if (!opened)
    return Refuse(ESRCH, "", absl::StrCat("process ", pid, " is gone or cannot be watched: ", strerror(errno)));
  return opened;
}

absl::StatusOr<std::uint32_t> ChooseVersion(const v1::Hello& hello) {
  const std::uint32_t version = std::min(hello.max_version(), kMaxProtocolVersion);
  if (version < hello.min_version() || version < kMinProtocolVersion) {
    return Refuse(EPROTONOSUPPORT, "",
                  absl::StrCat("the client speaks protocol versions ", hello.min_version(), " to ", hello.max_version(),
                               ", the daemon ", kMinProtocolVersion, " to ", kMaxProtocolVersion,
                               ": bring the older of the two up to date"));
  }
  return version;
}

// What was asked for, in the protocol's words.
std::string CallOf(const v1::HandoffRequest& request) {
  if (request.has_hello()) return "Hello";
  if (request.has_pass_file()) return "PassFile";
  if (request.has_close_file()) return "CloseFile";
  if (request.has_goodbye()) return "Goodbye";
  return "a packet";
}

void CloseUnwanted(int socket, shm::UniqueFd fd) {
  const absl::StatusOr<Credentials> peer = PeerOf(socket);
  backing::CloseElsewhere(std::move(fd), peer.ok() ? peer->uid : kNobody);
}

absl::Status BrokenPacket(int error) {
  if (error == EMSGSIZE) {
    return Refuse(EMSGSIZE, "", absl::StrCat("a packet has at most ", kMaxHandoffPacket, " bytes and one descriptor"));
  }
  return Refuse(EBADMSG, "", "the packet is no HandoffRequest (see handoff.proto)");
}

}  // namespace

HandoffServer::HandoffServer(sd_event* loop, UnixListener& listener, SessionTable& sessions, const Access& access,
                             Accounts& accounts, Events& events, HandoffHooks hooks)
    : loop_(loop),
      listener_(listener),
      sessions_(sessions),
      access_(access),
      accounts_(accounts),
      events_(events),
      hooks_(std::move(hooks)) {
  accepting_ = OnEvents<[](HandoffServer& self) { self.Accept(); }>(loop_, listener_.fd(), EPOLLIN, *this);
  if (accepting_ == nullptr) std::abort();
}

HandoffServer::~HandoffServer() = default;

void HandoffServer::Tell(EventKind kind, const Session& session, const std::string& sentence) {
  events_.Tell(kind, [&] {
    return Event{.kind = kind,
                 .session = session.id(),
                 .pid = session.peer().pid,
                 .uid = session.peer().uid,
                 .sentence = sentence};
  });
}

void HandoffServer::TellRefusal(const Connection& connection, const v1::HandoffRequest& request,
                                const absl::Status& refusal) {
  events_.Tell(EventKind::kRefused, [&] {
    Event event{.kind = EventKind::kRefused,
                .call = CallOf(request),
                .error = nommu::ErrnoOf(refusal),
                .rule = nommu::RuleOf(refusal),
                .sentence = std::string(refusal.message())};
    if (connection.session != nullptr) event.session = connection.session->id();
    if (const auto peer = PeerOf(connection.socket.get()); peer.ok()) {
      event.pid = peer->pid;
      event.uid = peer->uid;
    }
    return event;
  });
}

void HandoffServer::Accept() {
  shm::UniqueFd socket = listener_.Accept();
  if (!socket || (connections_.size() >= kMaxConnections && !DropSilent())) return;
  const std::uint64_t number = next_connection_++;
  silent_.insert(number);
  Connection& connection = connections_[number];
  connection.server = this;
  connection.number = number;
  connection.socket = std::move(socket);

  connection.readable = OnEvents<[](Connection& ready) { ready.server->Receive(ready); }>(
      loop_, connection.socket.get(), EPOLLIN, connection);
  connection.hello_deadline =
      After<[](Connection& silent) { silent.server->Drop(silent.number); }>(loop_, kHelloDeadlineUsec, connection);
  if (connection.readable == nullptr || connection.hello_deadline == nullptr) Drop(number);
}

void HandoffServer::Receive(Connection& connection) {
  v1::HandoffRequest request;
  const int fails = shm::FailAt(shm::Point::kReceive);
  HandoffPacket packet = fails ? HandoffPacket{.error = fails, .fd = {}, .unwanted = {}}
                               : ReceiveHandoffPacket(connection.socket.get(), request);
  if (packet.error == EAGAIN) return;
  if (packet.error == ECONNRESET) return Drop(connection.number);

  // Never here, where all would wait for the file's server.
  for (shm::UniqueFd& fd : packet.unwanted) CloseUnwanted(connection.socket.get(), std::move(fd));
  shm::UniqueFd descriptor;
  const bool broken = packet.error != 0;
  absl::StatusOr<v1::HandoffReply> reply = BrokenPacket(packet.error);
  if (!broken) reply = Answer(connection, request, packet.fd, descriptor);
  if (packet.fd) CloseUnwanted(connection.socket.get(), std::move(packet.fd));
  if (!reply.ok()) {
    TellRefusal(connection, request, reply.status());
    v1::HandoffReply refusal;
    *refusal.mutable_error() = ToWireError(reply.status());
    reply = std::move(refusal);
  }
  // A peer that does not take its answers loses its connection instead of holding anybody up.
  const bool sent =
      !shm::FailAt(shm::Point::kSend) && SendHandoffPacket(connection.socket.get(), *reply, descriptor.get()) == 0;
  // Nor has it a session that it was never told of.
  if (!sent && reply->has_welcome() && request.hello().token().empty()) EndSession(reply->welcome().session());
  if (broken || !sent || reply->has_farewell()) Drop(connection.number);
}

absl::StatusOr<v1::HandoffReply> HandoffServer::Answer(Connection& connection, const v1::HandoffRequest& request,
                                                       shm::UniqueFd& fd, shm::UniqueFd& descriptor) {
  v1::HandoffReply reply;
  if (fd && !request.has_pass_file()) return Refuse(EBADMSG, "", "only PassFile carries a descriptor");
  if (request.has_hello()) return Welcome(connection, request.hello(), descriptor);
  if (connection.session == nullptr) return Refuse(EPROTO, "", "the first message must be Hello");
  if (connection.session->revoked() && !request.has_goodbye()) {
    return Refuse(ESRCH, "", "the session was ended by an administrator: connect anew");
  }
  if (request.has_pass_file()) {
    if (!fd) return Refuse(EBADF, "", "PassFile carries no descriptor");
    if (absl::Status status = accounts_.Of(connection.session->peer().uid).TakeRequest(); !status.ok()) return status;
    const absl::StatusOr<int> number = connection.session->AddFile(std::move(fd));
    if (!number.ok()) return number.status();
    reply.mutable_file_passed()->set_fd(*number);
  } else if (request.has_close_file()) {
    if (absl::Status status = connection.session->CloseFile(request.close_file().fd()); !status.ok()) return status;
    reply.mutable_file_closed();
  } else if (request.has_goodbye()) {
    EndSession(connection.session->id());
    reply.mutable_farewell();
  } else {
    return Refuse(EBADMSG, "", "the packet holds no request this daemon knows");
  }
  return reply;
}

absl::StatusOr<v1::HandoffReply> HandoffServer::Welcome(Connection& connection, const v1::Hello& hello,
                                                        shm::UniqueFd& descriptor) {
  if (connection.session != nullptr) return Refuse(EPROTO, "", "this connection has its session already");
  const absl::StatusOr<std::uint32_t> version = ChooseVersion(hello);
  if (!version.ok()) return version.status();
  const absl::StatusOr<Credentials> peer = PeerOf(connection.socket.get());
  if (!peer.ok()) return peer.status();
  if (absl::Status status = access_.MayConnect(*peer); !status.ok()) return status;
  if (absl::Status status = access_.MayOpen(*peer, hello.read_only()); !status.ok()) return status;
  absl::StatusOr<Charge> charge = Charge::Take(&accounts_.Of(peer->uid), Resource::kConnections, 1);
  if (!charge.ok()) return charge.status();
  absl::StatusOr<shm::UniqueFd> pidfd = PidfdOf(connection.socket.get(), peer->pid);
  if (!pidfd.ok()) return pidfd.status();
  absl::StatusOr<shm::UniqueFd> pool = hooks_.pool_descriptor(!hello.read_only());
  if (!pool.ok()) return pool.status();
  const absl::StatusOr<SessionTable::Opened> opened = SessionFor(hello, *peer, *std::move(pidfd));
  if (!opened.ok()) return opened.status();

  shm::FailAt(shm::Point::kWelcome);
  connection.session = opened->session;
  connection.charge = *std::move(charge);
  silent_.erase(connection.number);
  connection.hello_deadline.reset();
  descriptor = *std::move(pool);
  v1::HandoffReply reply;
  *reply.mutable_welcome() = hooks_.welcome;
  reply.mutable_welcome()->set_version(*version);
  reply.mutable_welcome()->set_token(opened->token);
  reply.mutable_welcome()->set_session(opened->session->id());
  return reply;
}

// The session that the peer means: a new one, or by a token one that is.
absl::StatusOr<SessionTable::Opened> HandoffServer::SessionFor(const v1::Hello& hello, const Credentials& peer,
                                                               shm::UniqueFd pidfd) {
  if (hello.nonce().size() > kMaxNonce) return Refuse(EINVAL, "", "the nonce of a Hello has at most 32 bytes");
  // A daemon before this one opened it, and was killed before it could say so, or before the old session had ended.
  if (auto opened = hello.nonce().empty() ? std::nullopt : sessions_.FindByNonce(peer, hello.nonce())) {
    const std::shared_ptr<Session> old = sessions_.Find(absl::BytesToHexString(hello.token()));
    if (hello.executed() && old != nullptr && old->peer().pid == peer.pid) {
      hooks_.move_files(*old, *opened->session);
      EndSession(old->id());
    }
    return *std::move(opened);
  }
  if (hello.token().empty()) {
    if (hello.executed()) return Refuse(EINVAL, "X4", "what a program was executed over is named by its token");
    return OpenSession(hello, peer, std::move(pidfd), hooks_.open_space(peer));
  }
  const std::shared_ptr<Session> named = sessions_.Find(absl::BytesToHexString(hello.token()));
  if (named == nullptr) return Refuse(ESRCH, "", "no session has this token: it has ended; connect without one");
  if (named->read_only() && !hello.read_only()) {
    return Refuse(EACCES, "", "the token is of a read-only session: connect read_only");
  }
  const bool same_process = named->peer().pid == peer.pid;
  if (hello.executed()) {
    if (!same_process) return Refuse(EPERM, "X4", "the token is of another process, whose session this one cannot end");
    absl::StatusOr<SessionTable::Opened> opened = OpenSession(hello, peer, std::move(pidfd), hooks_.open_space(peer));
    if (opened.ok()) {
      hooks_.move_files(*named, *opened->session);
      shm::FailAt(shm::Point::kMoveFiles);
      EndSession(named->id());
    }
    return opened;
  }
  if (same_process) {
    Tell(EventKind::kSessionResumed, *named);
    return SessionTable::Opened{named, hello.token()};
  }
  hooks_.join_space(named->space(), peer);
  absl::StatusOr<SessionTable::Opened> opened = OpenSession(hello, peer, std::move(pidfd), named->space());
  if (opened.ok()) {
    Tell(EventKind::kSessionJoined, *opened->session,
         absl::StrCat("the address space of session ", named->id(), " of process ", named->peer().pid));
  }
  return opened;
}

absl::StatusOr<SessionTable::Opened> HandoffServer::OpenSession(const v1::Hello& hello, const Credentials& peer,
                                                                shm::UniqueFd pidfd, nommu::SpaceId space) {
  // A program that was executed takes the place of the one before.
  absl::StatusOr<SessionTable::Opened> opened =
      sessions_.Open(peer, hello.read_only(), space, hello.nonce(), /*replaces=*/hello.executed());
  if (!opened.ok()) {
    hooks_.leave_space(space, peer.pid);  // in one portion: if it is the only user, nothing is mapped
    return opened.status();
  }
  if (absl::Status status = Watch(opened->session, std::move(pidfd)); !status.ok()) {
    EndSession(opened->session->id());
    return status;
  }
  Tell(EventKind::kSessionOpened, *opened->session, hello.read_only() ? "read-only" : "");
  return opened;
}

// An empty pidfd: the process has ended.
absl::Status HandoffServer::Watch(std::shared_ptr<Session> session, shm::UniqueFd pidfd) {
  Process& process = processes_[session->id()];
  process.server = this;
  process.session = std::move(session);
  process.pidfd = std::move(pidfd);
  if (!process.pidfd) return absl::OkStatus();
  if (!shm::FailAt(shm::Point::kWatch)) {
    process.ended = OnEvents<[](Process& ended) { ended.server->EndSession(ended.session->id()); }>(
        loop_, process.pidfd.get(), EPOLLIN, process);
  }
  if (process.ended == nullptr) return Refuse(ENOMEM, "", "the process cannot be watched");
  return absl::OkStatus();
}

absl::Status HandoffServer::Restore() {
  shm::FailAt(shm::Point::kRestoreSessions);
  return sessions_.Restore([&](const std::shared_ptr<Session>& session, std::uint64_t start_time) {
    const pid_t pid = session->peer().pid;
    hooks_.join_space(session->space(), session->peer());
    // The pid may be another process's by now, before or after it is opened.
    shm::UniqueFd pidfd(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
    if (StartTimeOf(pid) != start_time) pidfd.reset();
    return Watch(session, std::move(pidfd));
  });
}

void HandoffServer::SayFarewell() {
  v1::HandoffReply farewell;
  farewell.mutable_farewell();
  for (const auto& [number, connection] : connections_) {
    shm::FailAt(shm::Point::kFarewell);
    if (connection.session != nullptr) SendHandoffPacket(connection.socket.get(), farewell);
  }
}

void HandoffServer::EndDead() {
  std::vector<std::uint64_t> dead;
  for (const auto& [id, process] : processes_) {
    if (!process.pidfd) dead.push_back(id);
  }
  for (const std::uint64_t id : dead) EndSession(id);
}

void HandoffServer::EndSession(std::uint64_t session) {
  const auto found = processes_.find(session);
  if (found == processes_.end() || found->second.closing != nullptr) return;
  Process& process = found->second;
  sessions_.Close(session);
  shm::FailAt(shm::Point::kEndSession);
  process.ended.reset();
  Tell(EventKind::kSessionEnded, *process.session);
  // By portions between other events, so that the end of a large session holds nobody up.
  process.closing = InTurns<[](Process& closing) { closing.server->LeavePortion(closing); }>(loop_, process);
  if (process.closing == nullptr) std::abort();
}

void HandoffServer::LeavePortion(const Process& process) {
  shm::FailAt(shm::Point::kLeaveSpace);
  const Session& session = *process.session;
  if (hooks_.leave_space(session.space(), session.peer().pid)) Forget(session.id());
}

// After all that it had is unmapped.
void HandoffServer::Forget(std::uint64_t session) {
  sessions_.Forget(session);
  processes_.erase(session);
}

// Who says nothing makes room for who may be about to. False: there is none such.
bool HandoffServer::DropSilent() {
  if (silent_.empty()) return false;
  Drop(*silent_.begin());
  return true;
}

void HandoffServer::Drop(std::uint64_t connection) {
  silent_.erase(connection);
  connections_.erase(connection);
}

}  // namespace mapbroker::session
