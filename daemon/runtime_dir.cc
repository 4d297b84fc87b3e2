#include "daemon/runtime_dir.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "daemon/nommu/refusal.h"

namespace mapbroker {
namespace {

absl::Status Failed(const std::string& what, int error) {
  return nommu::Refuse(error, "", absl::StrCat(what, ": ", std::strerror(error)));
}

}  // namespace

absl::StatusOr<RuntimeDir> RuntimeDir::Hold(const std::string& path, mode_t mode, std::optional<gid_t> group) {
  const bool made = mkdir(path.c_str(), 0700) == 0;
  if (!made && errno != EEXIST) return Failed(absl::StrCat("cannot make the runtime directory ", path), errno);
  shm::UniqueFd lock(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!lock) return Failed(absl::StrCat("cannot open the runtime directory ", path), errno);
  RuntimeDir dir(path, made, std::move(lock));
  if (made && group && fchown(dir.lock_.get(), static_cast<uid_t>(-1), *group) != 0) {
    return Failed(absl::StrCat("cannot give ", path, " to group ", *group, " (sockets.group)"), errno);
  }
  if (made && fchmod(dir.lock_.get(), mode) != 0) return Failed(absl::StrCat("cannot set the mode of ", path), errno);
  if (flock(dir.lock_.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return Failed(absl::StrCat("cannot lock the runtime directory ", path), errno);
    return nommu::Refuse(EBUSY, "",
                         absl::StrCat("another mapbrokerd serves ", path, ": stop it or choose another --runtime-dir"));
  }
  if (faccessat(AT_FDCWD, path.c_str(), W_OK | X_OK, AT_EACCESS) != 0) {
    return Failed(absl::StrCat("cannot write to the runtime directory ", path), errno);
  }
  return dir;
}

RuntimeDir::RuntimeDir(std::string path, bool made, shm::UniqueFd lock)
    : path_(std::move(path)), made_(made), lock_(std::move(lock)) {}

RuntimeDir::~RuntimeDir() {
  if (lock_ && made_) rmdir(path_.c_str());
}

}  // namespace mapbroker
