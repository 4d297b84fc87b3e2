// What happens in the daemon: told once, and from there counted, logged and given to who watches.
#pragma once

#include <sys/types.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "shm_backend/mutex.h"

namespace mapbroker {

// In the order of EventKind in inspection.proto, which begins at 1.
enum class EventKind : std::uint8_t {
  kSessionOpened,
  kSessionJoined,
  kSessionResumed,
  kSessionRevoked,
  kSessionEnded,
  kMapped,
  kUnmapped,
  kResized,
  kFilled,
  kRefused,
  kDeviceCreated,
  kDeviceRemoved,
  kMounted,
  kUnmounted,
  kDriverConnected,
  kDriverGone,
  kAdministered,
};
inline constexpr std::size_t kEventKinds = static_cast<std::size_t>(EventKind::kAdministered) + 1;

// "session-opened".
const char* NameOf(EventKind kind);

// What is not known or does not apply is left as it is here.
struct Event {
  EventKind kind;
  std::uint64_t session = 0;
  pid_t pid = 0;
  uid_t uid = 0;          // means something with a pid
  std::string peer = {};  // who calls over TCP: the name in its certificate
  std::string call = {};  // the call that was refused, "Mmap"
  int error = 0;          // its errno
  std::string rule = {};  // "M22"
  std::string sentence = {};
  std::optional<std::uint64_t> address = {};  // pool address
  std::uint64_t length = 0;                   // bytes
  std::string path = {};
  std::chrono::system_clock::time_point time = {};  // set by Events
};

// Thread-safe. Who tells never waits for who watches: one who does not keep up loses events and is told how many.
class Events {
 public:
  // Events kept for those who watch, while anybody does: some seconds of a busy daemon, about a megabyte.
  static constexpr std::size_t kKept = 8192;
  // Every watcher holds a thread of gRPC's. Of them one user may have a quarter, so that nobody keeps others from
  // watching.
  static constexpr std::size_t kMaxWatchers = 32;
  static constexpr std::size_t kMaxWatchersOfOne = 8;

  // Counts, and has the event made only if anybody is to see it: else it costs an increment and two loads.
  template <typename Make>
  void Tell(EventKind kind, const Make& make) {
    told_[static_cast<std::size_t>(kind)].fetch_add(1, std::memory_order_relaxed);
    if (IsWatched() || IsLogged(kind)) Publish(make());
  }

  std::uint64_t told(EventKind kind) const {
    return told_[static_cast<std::size_t>(kind)].load(std::memory_order_relaxed);
  }
  std::uint64_t lost() const { return lost_.load(std::memory_order_relaxed); }
  std::size_t watchers() const { return watching_.load(std::memory_order_relaxed); }

  // Not thread-safe itself; to be gone before the Events.
  class Watcher {
   public:
    ~Watcher();
    Watcher(const Watcher&) = delete;
    Watcher& operator=(const Watcher&) = delete;

    struct Portion {
      std::uint64_t lost = 0;  // events before these that were not kept long enough
      std::vector<std::shared_ptr<const Event>> events;
    };
    // Events since the last call, in order, at most `most`; waits for one until the deadline. nullopt: the daemon
    // stops.
    std::optional<Portion> Next(std::size_t most, std::chrono::steady_clock::time_point deadline);

   private:
    friend class Events;
    Watcher(Events& events, std::string who, std::uint64_t next) : events_(events), who_(std::move(who)), next_(next) {}

    Events& events_;
    const std::string who_;
    std::uint64_t next_;  // number of the event that comes next
  };

  // EAGAIN: too many watch. `who`: of whom there may be only so many; empty: of this one there may be any number.
  absl::StatusOr<std::unique_ptr<Watcher>> Watch(const std::string& who);

  // Sends all watchers away, and lets none in again.
  void Close();

 private:
  bool IsWatched() const { return watching_.load(std::memory_order_relaxed) > 0; }
  static bool IsLogged(EventKind kind);
  void Publish(Event event);

  std::array<std::atomic<std::uint64_t>, kEventKinds> told_{};
  std::atomic<std::uint64_t> lost_ = 0;
  std::atomic<std::size_t> watching_ = 0;
  shm::Mutex mutex_;
  shm::CondVar changed_;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  std::map<std::string, std::size_t> watchers_ ABSL_GUARDED_BY(mutex_);  // how many, by who
  std::deque<std::shared_ptr<const Event>> kept_ ABSL_GUARDED_BY(mutex_);
  std::uint64_t next_ ABSL_GUARDED_BY(mutex_) = 0;  // number of the event after the last of kept_
};

}  // namespace mapbroker
