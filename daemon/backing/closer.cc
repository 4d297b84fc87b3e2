#include "daemon/backing/closer.h"

#include <algorithm>
#include <deque>
#include <map>
#include <system_error>
#include <thread>
#include <utility>

#include "shm_backend/mutex.h"

namespace mapbroker::backing {
namespace {

// How long a user's thread waits for more to close before it ends: longer than clients pause between two files.
constexpr std::chrono::seconds kLinger(1);

// A thread for each user who has something to close, so that a file whose server hangs keeps only its user's from being
// closed.
class Closer {
 public:
  void Add(shm::UniqueFd fd, Charge charge, std::uint32_t user) {
    shm::MutexLock lock(mutex_);
    Queue& queue = queues_[user];
    queue.waiting.emplace_back(std::move(fd), std::move(charge));
    queue.changed.NotifyOne();
    if (queue.has_thread) return;
    try {
      std::thread([this, user] { Run(user); }).detach();
      queue.has_thread = true;
    } catch (const std::system_error&) {
      // No thread is to be had now; the next descriptor of this user tries again.
    }
  }

 private:
  struct Queue {
    std::deque<std::pair<shm::UniqueFd, Charge>> waiting;
    shm::CondVar changed;
    bool has_thread = false;
  };

  void Run(std::uint32_t user) {
    shm::MutexLock lock(mutex_);
    Queue& queue = queues_[user];
    for (;;) {
      const auto until = std::chrono::steady_clock::now() + kLinger;
      while (queue.waiting.empty()) {
        if (!queue.changed.WaitUntil(mutex_, until) && queue.waiting.empty()) {
          queues_.erase(user);
          return;
        }
      }
      std::pair<shm::UniqueFd, Charge> closing = std::move(queue.waiting.front());
      queue.waiting.pop_front();
      mutex_.Unlock();
      closing.first.reset();
      closing.second.Reset();
      mutex_.Lock();
    }
  }

  shm::Mutex mutex_;
  std::map<std::uint32_t, Queue> queues_ ABSL_GUARDED_BY(mutex_);  // by user
};

}  // namespace

void CloseElsewhere(shm::UniqueFd fd, std::uint32_t user, Charge charge) {
  // Never destroyed: its threads may hang in a close for as long as the process lives.
  static Closer* const closer = new Closer;
  closer->Add(std::move(fd), std::move(charge), user);
}

}  // namespace mapbroker::backing
