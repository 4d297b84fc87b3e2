// Takes over from a changed configuration file what can change while the daemon runs: limits, access and log level.
#pragma once

#include <systemd/sd-event.h>

#include "absl/status/status.h"
#include "daemon/broker.h"
#include "daemon/config.h"
#include "daemon/session/access.h"
#include "shm_backend/mutex.h"

namespace mapbroker {

// Thread-safe. Lives as long as the event loop runs.
class Reloader {
 public:
  // `config` is what the daemon was started with. Broker and access outlive it.
  Reloader(Options options, Config config, Broker& broker, session::Access& access)
      : options_(std::move(options)), running_(std::move(config)), broker_(broker), access_(access) {}

  // Reads the configuration anew. What cannot change is named in a warning and left. EINVAL, with file and line:
  // nothing has changed.
  absl::Status Reload();

  // Those in force.
  Limits limits() {
    shm::MutexLock lock(mutex_);
    return running_.limits;
  }

  // Reloads on SIGHUP from now on, and tells the service manager. REQUIRES: the signal is blocked.
  void OnHangup(sd_event* loop);

 private:
  const Options options_;
  shm::Mutex mutex_;
  Config running_ ABSL_GUARDED_BY(mutex_);
  Broker& broker_;
  session::Access& access_;
};

}  // namespace mapbroker
