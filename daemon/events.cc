#include "daemon/events.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "daemon/log.h"
#include "daemon/nommu/refusal.h"

namespace mapbroker {

const char* NameOf(EventKind kind) {
  static constexpr std::array<const char*, kEventKinds> kNames{
      "session-opened", "session-joined", "session-resumed",  "session-revoked", "session-ended",  "mapped",
      "unmapped",       "resized",        "filled",           "refused",         "device-created", "device-removed",
      "mounted",        "unmounted",      "driver-connected", "driver-gone",     "administered"};
  return kNames[static_cast<std::size_t>(kind)];
}

bool Events::IsLogged(EventKind kind) { return mapbroker::IsLogged(kind); }

void Events::Publish(Event event) {
  event.time = std::chrono::system_clock::now();
  Log(event);
  if (!IsWatched()) return;
  auto kept = std::make_shared<const Event>(std::move(event));
  shm::MutexLock lock(mutex_);
  if (watchers_.empty()) return;
  kept_.push_back(std::move(kept));
  ++next_;
  if (kept_.size() > kKept) kept_.pop_front();
  changed_.NotifyAll();
}

absl::StatusOr<std::unique_ptr<Events::Watcher>> Events::Watch(const std::string& who) {
  shm::MutexLock lock(mutex_);
  if (closed_) return nommu::Refuse(ECANCELED, "", "the daemon stops");
  const auto same = watchers_.find(who);
  if (watching_ >= kMaxWatchers || (!who.empty() && same != watchers_.end() && same->second >= kMaxWatchersOfOne)) {
    return nommu::Refuse(EAGAIN, "",
                         absl::StrCat("there are too many who watch, at most ", kMaxWatchersOfOne, " of one user and ",
                                      kMaxWatchers, " in all: stop one of them"));
  }
  ++watchers_[who];
  ++watching_;
  return std::unique_ptr<Watcher>(new Watcher(*this, who, next_));
}

Events::Watcher::~Watcher() {
  shm::MutexLock lock(events_.mutex_);
  if (--events_.watchers_[who_] == 0) events_.watchers_.erase(who_);
  if (--events_.watching_ == 0) events_.kept_.clear();
}

std::optional<Events::Watcher::Portion> Events::Watcher::Next(std::size_t most,
                                                              std::chrono::steady_clock::time_point deadline) {
  Portion portion;
  shm::MutexLock lock(events_.mutex_);
  while (!events_.closed_ && next_ == events_.next_) {
    if (!events_.changed_.WaitUntil(events_.mutex_, deadline)) break;
  }
  if (events_.closed_) return std::nullopt;
  const std::uint64_t first = events_.next_ - events_.kept_.size();
  if (next_ < first) {
    portion.lost = first - next_;
    events_.lost_ += portion.lost;
    next_ = first;
  }
  const std::uint64_t end = std::min<std::uint64_t>(events_.next_, next_ + most);
  portion.events.assign(events_.kept_.begin() + static_cast<std::ptrdiff_t>(next_ - first),
                        events_.kept_.begin() + static_cast<std::ptrdiff_t>(end - first));
  next_ = end;
  return portion;
}

void Events::Close() {
  shm::MutexLock lock(mutex_);
  closed_ = true;
  changed_.NotifyAll();
}

}  // namespace mapbroker
