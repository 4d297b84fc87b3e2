// Looking at a daemon, of this machine or over TLS, and administering it.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "mapbroker/export.h"

namespace mapbroker {

class Client;

// One line of the daemon's list, as in /proc/maps.
struct MappingRow {
  std::uint64_t start = 0;   // pool address, bytes
  std::uint64_t end = 0;     // pool address, bytes, exclusive
  std::string perms;         // "r-xp": r, w, x or -, then p, s or S
  std::uint64_t offset = 0;  // bytes from the start of the file
  std::uint32_t dev_major = 0;
  std::uint32_t dev_minor = 0;
  std::uint64_t inode = 0;
  std::string path;         // empty for anonymous memory
  std::vector<pid_t> pids;  // who has it mapped, ascending, one entry a mapping
};

struct PoolStatistics {
  std::uint64_t pool_size = 0;         // bytes; used + free + scrubbing
  std::uint64_t used = 0;              // bytes of regions
  std::uint64_t free = 0;              // bytes that can be given out at once
  std::uint64_t scrubbing = 0;         // bytes that were unmapped and wait to be zeroed
  std::uint64_t largest_free_run = 0;  // bytes
  std::uint64_t regions = 0;
  std::uint64_t mappings = 0;
  std::uint64_t sessions = 0;
  std::uint64_t saved_by_sharing = 0;  // bytes that would be needed in addition if nothing were shared
  std::uint64_t filling = 0;           // regions being read now
  std::uint64_t fills_total = 0;       // reads of a file range since the daemon started
  std::uint64_t prefaulted = 0;        // bytes of the pool known to be resident
  std::string profile;                 // "classic" or "modern"
};

// What outlives the daemon on disk.
struct LedgerStatistics {
  std::uint64_t records = 0;   // in its file
  std::uint64_t bytes = 0;     // of its file that are in use
  std::uint64_t waiting = 0;   // changes that are safe in its log and not in the file yet
  std::uint64_t deferred = 0;  // changes that could not be recorded yet
  bool failing = false;        // it could not be written the last time
};

struct DaemonStatus {
  std::string version;
  std::chrono::system_clock::time_point started;
  std::chrono::milliseconds uptime{};
  // Pool, sessions and mappings were taken over from a daemon before; they are that old.
  bool taken_over = false;
  std::chrono::system_clock::time_point state_since;
  PoolStatistics pool;
  LedgerStatistics ledger;
  std::uint64_t refused_total = 0;              // calls that were refused since the daemon started
  std::uint64_t watchers = 0;                   // who call Watch
  std::map<std::string, std::uint64_t> limits;  // what the configuration limits, by the names it has there
};

struct SessionRow {
  std::uint64_t session = 0;
  pid_t pid = 0;
  uid_t uid = 0;
  gid_t gid = 0;
  std::string command;  // as far as the kernel keeps it; empty if the process is gone
  bool read_only = false;
  bool traced = false;
  bool revoked = false;             // ended by an administrator; its process still lives
  std::uint64_t address_space = 0;  // which several sessions may use
  std::uint64_t mappings = 0;       // of the address space
  std::uint64_t mapped = 0;         // bytes of them, shared ones too
  std::uint64_t files = 0;          // open in the session
  std::uint64_t calls = 0;          // since it was opened, or the daemon was started
};

// Something that happened. What does not apply is left as it is here.
struct DaemonEvent {
  std::string kind;  // "mapped"; docs/observability.md has them all
  std::chrono::system_clock::time_point time;
  std::uint64_t session = 0;
  pid_t pid = 0;
  uid_t uid = 0;
  std::string peer;  // who called over TCP: the name in its certificate
  std::string call;  // that was refused
  int error = 0;     // its errno
  std::string rule;
  std::string sentence;
  std::optional<std::uint64_t> address;  // pool address
  std::uint64_t length = 0;              // bytes
  std::string path;
};

// Which events; what is left out does not narrow.
struct WatchOptions {
  std::uint64_t session = 0;
  pid_t pid = 0;
  std::vector<std::string> kinds = {};
};

// A daemon that listens on TCP. The files are in PEM.
struct RemoteOptions {
  std::string server;       // "HOST:PORT"
  std::string ca;           // file: who has signed the daemon's certificate
  std::string certificate;  // file: the caller's own
  std::string key;          // file: of that certificate
};

// Thread-safe. Calls fail as those of Client do; over TLS with ECONNRESET where the daemon cannot be reached or takes
// the certificate for none of its callers', EACCES or EPERM where the certificate's names may not call.
class MAPBROKER_EXPORT Inspector {
 public:
  // Of a client's daemon, in the client's session.
  static Inspector Of(const Client& client);
  // EINVAL: a file that cannot be read. That the daemon is there is found out by the first call.
  static absl::StatusOr<Inspector> Connect(const RemoteOptions& options);

  Inspector(Inspector&& other) noexcept;
  Inspector& operator=(Inspector&& other) noexcept;
  ~Inspector();

  absl::StatusOr<DaemonStatus> Status();
  // Calls `row` for every region of the pool (pid 0, L1) or every mapping of one process (L2) in address order, until
  // it returns false. ESRCH if the process has no session.
  absl::Status ListMappings(pid_t pid, const std::function<bool(const MappingRow&)>& row);
  // Calls `row` for every session, by number, until it returns false.
  absl::Status ListSessions(const std::function<bool(const SessionRow&)>& row);
  // Calls `portion` for what happens, until it returns false: first with nothing, when no event is missed any more,
  // then with events and how many, of whatever kind, came before them and were not taken in time. EINVAL: no such kind;
  // EAGAIN: too many watch; ECANCELED: the daemon stops.
  absl::Status Watch(const WatchOptions& options,
                     const std::function<bool(std::uint64_t lost, const std::vector<DaemonEvent>& events)>& portion);

  // For administrators: root, the daemon's own user, over TLS those whom the daemon names so. EPERM for others.
  //
  // The session's calls are refused from now on; its memory comes back when its process ends, which with `kill` gets
  // SIGKILL. ESRCH.
  absl::Status EndSession(std::uint64_t session, bool kill = false);
  // "trace", "debug", "info", "warning", "error", "critical", "off"; the level that was. EINVAL.
  absl::StatusOr<std::string> SetLogLevel(const std::string& level);

 private:
  struct Impl;
  explicit Inspector(std::shared_ptr<Impl> impl);
  std::shared_ptr<Impl> impl_;
};

}  // namespace mapbroker
