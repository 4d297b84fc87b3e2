#include "daemon/reload.h"

#include <signal.h>
#include <systemd/sd-daemon.h>
#include <time.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "spdlog/spdlog.h"

namespace mapbroker {
namespace {

// What differs and is taken over at a start alone.
std::vector<std::string> Unchangeable(const Config& running, const Config& wanted) {
  std::vector<std::string> keys;
  const auto compare = [&](const char* key, bool same) {
    if (!same) keys.emplace_back(key);
  };
  compare("runtime_dir", running.runtime_dir == wanted.runtime_dir);
  compare("profile", running.profile == wanted.profile);
  compare("pool.kind", running.pool.kind == wanted.pool.kind && running.pool.name == wanted.pool.name);
  compare("pool.size", running.pool.size == wanted.pool.size);
  compare("pool.huge_pages", running.pool.huge_pages == wanted.pool.huge_pages);
  compare("[tcp]", running.tcp == wanted.tcp);
  compare("[metrics]", running.metrics == wanted.metrics);
  compare("sockets.group", running.socket_group == wanted.socket_group);
  compare("sockets.directory_mode", running.directory_mode == wanted.directory_mode);
  compare("sockets.mode", running.socket_mode == wanted.socket_mode);
  // Where in the file they stand may change.
  const auto same = [](const Config::Declared& a, const Config::Declared& b) {
    return a.what == b.what && a.values == b.values;
  };
  compare("[[ram_file]], [[device]] or [[mount]]", std::equal(running.declared.begin(), running.declared.end(),
                                                              wanted.declared.begin(), wanted.declared.end(), same));
  return keys;
}

}  // namespace

absl::Status Reloader::Reload() {
  shm::MutexLock lock(mutex_);
  const absl::StatusOr<Config> wanted = MakeConfig(options_);
  if (!wanted.ok()) return wanted.status();
  if (const std::vector<std::string> left = Unchangeable(running_, *wanted); !left.empty()) {
    spdlog::warn("reload: {} cannot change while the daemon runs: restart it", absl::StrJoin(left, ", "));
  }
  broker_.SetLimits(wanted->limits);
  access_.Set(wanted->access);
  spdlog::set_level(wanted->log_level);
  running_.limits = wanted->limits;
  running_.access = wanted->access;
  running_.log_level = wanted->log_level;
  return absl::OkStatus();
}

void Reloader::OnHangup(sd_event* loop) {
  const auto on_signal = [](sd_event_source*, const signalfd_siginfo*, void* self) {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    // The time tells systemd that what it sees next is of this reload and not of one before.
    const std::int64_t usec = now.tv_sec * 1'000'000 + now.tv_nsec / 1000;
    sd_notify(0, absl::StrCat("RELOADING=1\nMONOTONIC_USEC=", usec).c_str());
    const absl::Status status = static_cast<Reloader*>(self)->Reload();
    if (status.ok()) {
      spdlog::info("configuration reloaded: limits, access and log level");
    } else {
      spdlog::error("configuration not reloaded, all stays as it was: {}", std::string(status.message()));
    }
    sd_notify(0, "READY=1");
    return 0;
  };
  if (sd_event_add_signal(loop, nullptr, SIGHUP, on_signal, this) < 0) std::abort();
}

}  // namespace mapbroker
