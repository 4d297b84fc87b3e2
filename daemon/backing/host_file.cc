#include "daemon/backing/host_file.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "daemon/backing/closer.h"
#include "daemon/nommu/refusal.h"
#include "shm_backend/failure_point.h"

namespace mapbroker::backing {
namespace {

using shm::UniqueFd;

absl::Status Failed(const char* call, int error) {
  return nommu::Refuse(error, "", absl::StrCat(call, " of the file failed: ", std::strerror(error)));
}

// M8: files whose contents are made up when they are read have no mmap.
bool IsPseudoFile(int fd) {
  struct statfs fs;
  if (fstatfs(fd, &fs) != 0) return false;
  for (const long magic : {PROC_SUPER_MAGIC, SYSFS_MAGIC, DEBUGFS_MAGIC, TRACEFS_MAGIC}) {
    if (fs.f_type == magic) return true;
  }
  return false;
}

std::uint64_t BirthOf(const struct statx& stat) {
  if ((stat.stx_mask & STATX_BTIME) == 0) return 0;
  return static_cast<std::uint64_t>(stat.stx_btime.tv_sec) * 1'000'000'000 + stat.stx_btime.tv_nsec;
}

class HostFile final : public Backing {
 public:
  HostFile(UniqueFd fd, const struct statx& stat, int open_flags, std::uint32_t user, Charge charge)
      : fd_(std::move(fd)), user_(user), charge_(std::move(charge)), block_(S_ISBLK(stat.stx_mode)) {
    id = {.device = makedev(stat.stx_dev_major, stat.stx_dev_minor), .inode = stat.stx_ino, .birth = BirthOf(stat)};
    kind = KindOf(stat, open_flags);
    if (kind != Kind::kMappable) return;
    capabilities = nommu::kMapCopy;
    const int mode = open_flags & O_ACCMODE;
    readable = mode != O_WRONLY;
    writable = mode != O_RDONLY;
    append_only = (stat.stx_attributes & STATX_ATTR_APPEND) != 0;
    struct statfs fs;
    noexec = fstatfs(fd_.get(), &fs) == 0 && (fs.f_flags & ST_NOEXEC) != 0;
    record_ = Backing::Record();
  }
  ~HostFile() override { CloseElsewhere(std::move(fd_), user_, std::move(charge_)); }

  absl::StatusOr<std::uint64_t> Size() const override {
    if (block_) {
      std::uint64_t size = 0;
      if (ioctl(fd_.get(), BLKGETSIZE64, &size) != 0) return Failed("BLKGETSIZE64", errno);
      return size;
    }
    struct stat now;
    if (fstat(fd_.get(), &now) != 0) return Failed("fstat", errno);
    return static_cast<std::uint64_t>(now.st_size);
  }

  absl::StatusOr<std::size_t> Read(std::uint64_t offset, std::span<std::byte> into) const override {
    if (const int error = shm::FailAt(shm::Point::kFileRead)) return Failed("pread", error);
    ssize_t read;
    do {
      read = pread(fd_.get(), into.data(), into.size(), static_cast<off_t>(offset));
    } while (read < 0 && errno == EINTR);
    if (read < 0) return Failed("pread", errno);
    return static_cast<std::size_t>(read);
  }

  record::File Record() const override { return record_; }

  std::string Path() const override {
    std::array<char, 4096> path;
    const ssize_t length = readlink(absl::StrCat("/proc/self/fd/", fd_.get()).c_str(), path.data(), path.size());
    return length < 0 ? std::string("?") : std::string(path.data(), static_cast<std::size_t>(length));
  }

 private:
  Kind KindOf(const struct statx& stat, int open_flags) const {
    if ((open_flags & O_PATH) != 0) return Kind::kNotOpen;
    if (S_ISBLK(stat.stx_mode)) return Kind::kMappable;
    if (S_ISSOCK(stat.stx_mode)) return Kind::kNoCapabilities;
    if (S_ISREG(stat.stx_mode) && !IsPseudoFile(fd_.get())) return Kind::kMappable;
    return Kind::kNoMmap;
  }

  UniqueFd fd_;
  const std::uint32_t user_;
  Charge charge_;
  bool block_;
  record::File record_;  // with the path that it had when it was opened
};

}  // namespace

absl::StatusOr<std::shared_ptr<Backing>> OpenHostFile(UniqueFd fd, std::uint32_t user, Charge charge) {
  if (const int error = shm::FailAt(shm::Point::kFileOpen)) return Failed("statx", error);
  const int open_flags = fcntl(fd.get(), F_GETFL);
  if (open_flags < 0) return Failed("F_GETFL", errno);
  struct statx stat;
  if (statx(fd.get(), "", AT_EMPTY_PATH, STATX_BASIC_STATS | STATX_BTIME, &stat) != 0) return Failed("statx", errno);
  return std::make_shared<HostFile>(std::move(fd), stat, open_flags, user, std::move(charge));
}

}  // namespace mapbroker::backing
