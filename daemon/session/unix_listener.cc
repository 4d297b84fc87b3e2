#include "daemon/session/unix_listener.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "daemon/nommu/refusal.h"
#include "shm_backend/failure_point.h"

namespace mapbroker::session {
namespace {

absl::Status Failed(const std::string& what, int error) {
  return nommu::Refuse(error, "", absl::StrCat(what, ": ", std::strerror(error)));
}

shm::UniqueFd OpenSpare() { return shm::UniqueFd(open("/dev/null", O_RDONLY | O_CLOEXEC)); }

}  // namespace

absl::StatusOr<UnixListener> UnixListener::Listen(const std::string& path, int type, mode_t mode,
                                                  std::optional<gid_t> group) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) {
    return nommu::Refuse(ENAMETOOLONG, "",
                         absl::StrCat("socket path ", path, " is longer than ", sizeof(address.sun_path) - 1,
                                      " bytes: choose a shorter runtime directory"));
  }
  std::memcpy(address.sun_path, path.data(), path.size());

  shm::UniqueFd fd(socket(AF_UNIX, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd) return Failed("socket", errno);
  struct stat existing;
  if (lstat(path.c_str(), &existing) == 0) {
    if (!S_ISSOCK(existing.st_mode)) {
      return nommu::Refuse(
          EEXIST, "", absl::StrCat(path, " exists and is no socket: remove it or choose another runtime directory"));
    }
    unlink(path.c_str());
  }
  // Nobody else may connect before the mode is set.
  const mode_t mask = umask(0177);
  const int bound = bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address));
  const int error = errno;
  umask(mask);
  if (bound != 0) return Failed(absl::StrCat("cannot bind ", path), error);
  UnixListener listener(std::move(fd), path, /*made=*/true);
  if (group && chown(path.c_str(), static_cast<uid_t>(-1), *group) != 0) {
    return Failed(absl::StrCat("cannot give ", path, " to group ", *group, " (sockets.group)"), errno);
  }
  if (chmod(path.c_str(), mode) != 0) return Failed(absl::StrCat("cannot set the mode of ", path), errno);
  if (listen(listener.fd(), SOMAXCONN) != 0) return Failed(absl::StrCat("cannot listen on ", path), errno);
  return listener;
}

UnixListener UnixListener::Adopt(shm::UniqueFd fd) {
  sockaddr_un address{};
  socklen_t size = sizeof(address) - 1;  // so that a path of full length ends with a zero
  std::string path;
  if (getsockname(fd.get(), reinterpret_cast<sockaddr*>(&address), &size) == 0) path = address.sun_path;
  // systemd passes blocking ones, and Accept must not wait for a connection that has gone again.
  fcntl(fd.get(), F_SETFL, fcntl(fd.get(), F_GETFL) | O_NONBLOCK);
  return {std::move(fd), std::move(path), /*made=*/false};
}

UnixListener::UnixListener(shm::UniqueFd fd, std::string path, bool made)
    : fd_(std::move(fd)), spare_(OpenSpare()), path_(std::move(path)), made_(made) {}

UnixListener::~UnixListener() {
  if (fd_ && made_) unlink(path_.c_str());
}

shm::UniqueFd UnixListener::Accept() {
  shm::UniqueFd connection(
      shm::FailAt(shm::Point::kAccept) ? -1 : accept4(fd_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
  if (!connection && (errno == EMFILE || errno == ENFILE)) {
    spare_.reset();
    shm::UniqueFd refused(accept4(fd_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    refused.reset();
    spare_ = OpenSpare();
  }
  return connection;
}

}  // namespace mapbroker::session
