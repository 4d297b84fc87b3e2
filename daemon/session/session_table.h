// All sessions, by number and by token.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "daemon/session/session.h"
#include "shm_backend/mutex.h"

namespace mapbroker::session {

// Thread-safe.
class SessionTable {
 public:
  struct Opened {
    std::shared_ptr<Session> session;
    std::string token;  // secret: never logged
  };

  // Numbers start at 1 and are not reused. REQUIRES: `space` is an open address space of the peer.
  Opened Open(const Credentials& peer, bool read_only, nommu::SpaceId space);

  // One that was recorded. Numbers go on after it.
  void Restore(const std::shared_ptr<Session>& session, const std::string& token);

  // Null if there is none.
  std::shared_ptr<Session> FindById(std::uint64_t id) const;

  // The session whose token, in hexadecimal, this is; null if there is none. The secret part is compared in constant
  // time.
  std::shared_ptr<Session> Find(const std::string& hex_token) const;

  // Those of a process.
  std::vector<std::shared_ptr<Session>> OfProcess(pid_t pid) const;

  // From now on the token is worth nothing.
  void Close(std::uint64_t id);

  std::size_t size() const;

 private:
  struct Entry {
    std::shared_ptr<Session> session;
    std::string token;
  };

  mutable shm::Mutex mutex_;
  std::uint64_t next_id_ ABSL_GUARDED_BY(mutex_) = 1;
  absl::flat_hash_map<std::uint64_t, Entry> sessions_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace mapbroker::session
