#include "daemon/activation.h"

#include <sys/socket.h>
#include <systemd/sd-daemon.h>

#include <cstdlib>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "spdlog/spdlog.h"

namespace mapbroker {
namespace {

// What the pool goes by in systemd's file-descriptor store.
constexpr char kPoolName[] = "pool";

// Sockets go by their types: both are of one unit of systemd's, which has one name for all its sockets.
shm::UniqueFd* PlaceOf(Activation& activation, int fd, const std::string& name) {
  if (name == kPoolName) return &activation.pool;
  if (sd_is_socket_unix(fd, SOCK_SEQPACKET, /*listening=*/1, nullptr, 0) > 0) return &activation.handoff;
  if (sd_is_socket_unix(fd, SOCK_STREAM, /*listening=*/1, nullptr, 0) > 0) return &activation.grpc;
  return nullptr;
}

}  // namespace

Activation Activation::Take() {
  char** names = nullptr;
  const int count = sd_listen_fds_with_names(/*unset_environment=*/1, &names);
  Activation activation;
  for (int i = 0; i < count; ++i) {
    shm::UniqueFd passed(SD_LISTEN_FDS_START + i);
    shm::UniqueFd* const place = PlaceOf(activation, passed.get(), names[i]);
    if (place != nullptr && !*place) {
      *place = std::move(passed);
    } else {
      spdlog::warn("descriptor {} ({}) of the service manager is closed: {}", passed.get(), names[i],
                   place == nullptr ? "it is neither the pool nor a listening Unix socket" : "there is one already");
    }
    std::free(names[i]);
  }
  std::free(names);
  return activation;
}

void StorePool(int fd) {
  ForgetStoredPool();
  sd_pid_notify_with_fds(0, 0, absl::StrCat("FDSTORE=1\nFDNAME=", kPoolName).c_str(), &fd, 1);
}

void ForgetStoredPool() { sd_notify(0, absl::StrCat("FDSTOREREMOVE=1\nFDNAME=", kPoolName).c_str()); }

}  // namespace mapbroker
