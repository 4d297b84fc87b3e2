#include "daemon/backing/closer.h"

#include <thread>
#include <utility>
#include <vector>

#include "shm_backend/mutex.h"

namespace mapbroker::backing {
namespace {

class Closer {
 public:
  Closer() {
    std::thread([this] { Run(); }).detach();
  }

  void Add(shm::UniqueFd fd) {
    shm::MutexLock lock(mutex_);
    waiting_.push_back(std::move(fd));
    changed_.NotifyOne();
  }

 private:
  [[noreturn]] void Run() {
    for (;;) {
      std::vector<shm::UniqueFd> closing;
      {
        shm::MutexLock lock(mutex_);
        while (waiting_.empty()) changed_.Wait(mutex_);
        closing.swap(waiting_);
      }
    }
  }

  shm::Mutex mutex_;
  shm::CondVar changed_;
  std::vector<shm::UniqueFd> waiting_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

void CloseElsewhere(shm::UniqueFd fd) {
  // Never destroyed: its thread may hang in a close for as long as the process lives.
  static Closer* const closer = new Closer;
  closer->Add(std::move(fd));
}

}  // namespace mapbroker::backing
