// Serves the handoff socket: opens sessions, takes descriptors, and sees when processes end.
#pragma once

#include <systemd/sd-event.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>

#include "daemon/account.h"
#include "daemon/event_source.h"
#include "daemon/events.h"
#include "daemon/nommu/memory_map.h"
#include "daemon/session/access.h"
#include "daemon/session/session_table.h"
#include "daemon/session/unix_listener.h"
#include "mapbroker/v1/handoff.pb.h"
#include "shm_backend/unique_fd.h"

namespace mapbroker::session {

// Connections at a time; every one costs a descriptor or two. When there are as many, those go first that have not said
// Hello, the oldest before the others.
inline constexpr std::size_t kMaxConnections = 8192;

// What the server needs to know of the rest of the daemon.
struct HandoffHooks {
  // The part of Welcome that is the same for all: pool, sizes, profile.
  v1::Welcome welcome;
  // A descriptor of the pool for a new session.
  std::function<absl::StatusOr<shm::UniqueFd>(bool writable)> pool_descriptor;
  std::function<nommu::SpaceId(const Credentials&)> open_space;
  // The process uses the address space as well.
  std::function<void(nommu::SpaceId, const Credentials&)> join_space;
  // X4: the open files of one session become another's.
  std::function<void(Session& from, Session& to)> move_files;
  // A user goes; with the last a portion is unmapped. True when there is no more to do.
  std::function<bool(nommu::SpaceId, pid_t)> leave_space;
};

// Lives on the thread of its event loop; every callback runs there and none blocks.
class HandoffServer {
 public:
  // All arguments outlive the server.
  HandoffServer(sd_event* loop, UnixListener& listener, SessionTable& sessions, const Access& access,
                Accounts& accounts, Events& events, HandoffHooks hooks);
  ~HandoffServer();
  HandoffServer(const HandoffServer&) = delete;
  HandoffServer& operator=(const HandoffServer&) = delete;

  // Makes the recorded sessions again, and their uses of address spaces. DataLoss: a record cannot be read.
  absl::Status Restore();
  // Tells all clients that no daemon will take their sessions over.
  void SayFarewell();
  // Ends those of them whose processes have ended meanwhile. After all else is made again.
  void EndDead();

 private:
  // One connected peer, until it hangs up.
  struct Connection {
    HandoffServer* server = nullptr;
    std::uint64_t number = 0;
    shm::UniqueFd socket;
    std::shared_ptr<Session> session;  // null before Hello
    Charge charge;                     // empty before Hello
    EventSource readable;
    EventSource hello_deadline;
  };
  // One session's process, until it has ended and all it had is unmapped. Outlives the connection.
  struct Process {
    HandoffServer* server = nullptr;
    std::shared_ptr<Session> session;
    shm::UniqueFd pidfd;
    EventSource ended;
    EventSource closing;
  };

  void Tell(EventKind kind, const Session& session, const std::string& sentence = "");
  void TellRefusal(const Connection& connection, const v1::HandoffRequest& request, const absl::Status& refusal);
  void Accept();
  void Receive(Connection& connection);
  absl::StatusOr<v1::HandoffReply> Answer(Connection& connection, const v1::HandoffRequest& request, shm::UniqueFd& fd,
                                          shm::UniqueFd& descriptor);
  absl::StatusOr<v1::HandoffReply> Welcome(Connection& connection, const v1::Hello& hello, shm::UniqueFd& descriptor);
  absl::StatusOr<SessionTable::Opened> SessionFor(const v1::Hello& hello, const Credentials& peer, shm::UniqueFd pidfd);
  absl::StatusOr<SessionTable::Opened> OpenSession(const v1::Hello& hello, const Credentials& peer, shm::UniqueFd pidfd,
                                                   nommu::SpaceId space);
  absl::Status Watch(std::shared_ptr<Session> session, shm::UniqueFd pidfd);
  void EndSession(std::uint64_t session);
  void LeavePortion(const Process& process);
  void Forget(std::uint64_t session);
  bool DropSilent();
  void Drop(std::uint64_t connection);

  sd_event* const loop_;
  UnixListener& listener_;
  SessionTable& sessions_;
  const Access& access_;
  Accounts& accounts_;
  Events& events_;
  const HandoffHooks hooks_;
  EventSource accepting_;
  std::uint64_t next_connection_ = 1;
  std::map<std::uint64_t, Connection> connections_;
  std::set<std::uint64_t> silent_;              // those that have not said Hello
  std::map<std::uint64_t, Process> processes_;  // by session
};

}  // namespace mapbroker::session
