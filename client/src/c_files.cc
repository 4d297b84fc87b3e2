// The C face: ram files, POSIX and System V shared memory.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/src/c_session.h"
#include "client/src/status.h"
#include "mapbroker/mapbroker.h"

namespace mapbroker::c_face {
namespace {

// F7: where POSIX shared memory objects are among the ram files.
constexpr char kPosixPrefix[] = "ram:/dev/shm";

// 0, or -1 with errno.
int Answer(const absl::Status& status) {
  if (status.ok()) return 0;
  Fail(status);
  return -1;
}

// Null with errno.
std::shared_ptr<File> FileOf(mb_session& session, int fd) {
  std::shared_ptr<File> file = PoolFileOf(session, fd);
  if (file == nullptr) Fail(MakeStatus(EBADF, "the descriptor is no ram file of this session: mb_open gives one", "F"));
  return file;
}

// shm_open(3): a slash and a name without further ones.
absl::StatusOr<std::string> PosixName(const char* name) {
  if (name[0] != '/' || name[1] == '\0' || std::strchr(name + 1, '/') != nullptr) {
    return MakeStatus(EINVAL, "the name of a shared memory object is a slash and a name without slashes", "F7");
  }
  return absl::StrCat(kPosixPrefix, name);
}

void CopyOut(const ShmSegment& segment, shmid_ds& to) {
  to = {};
  to.shm_perm.__key = segment.key;
  to.shm_perm.uid = segment.uid;
  to.shm_perm.gid = segment.gid;
  to.shm_perm.cuid = segment.cuid;
  to.shm_perm.cgid = segment.cgid;
  to.shm_perm.mode = static_cast<decltype(to.shm_perm.mode)>(segment.mode | (segment.marked_destroyed ? SHM_DEST : 0));
  to.shm_segsz = segment.size;
  to.shm_atime = segment.atime;
  to.shm_dtime = segment.dtime;
  to.shm_ctime = segment.ctime;
  to.shm_cpid = segment.cpid;
  to.shm_lpid = segment.lpid;
  to.shm_nattch = segment.nattch;
}

}  // namespace

std::shared_ptr<File> PoolFileOf(mb_session& session, int fd) {
  shm::MutexLock lock(session.mutex);
  const auto found = session.files.find(fd);
  if (found == session.files.end()) return nullptr;
  struct stat stat;
  if (fstat(fd, &stat) == 0 && stat.st_ino == found->second.inode) return found->second.file;
  // The program closed the number by itself; it is not ours to close any more.
  found->second.stand_in.release();
  session.files.erase(found);
  return nullptr;
}

}  // namespace mapbroker::c_face

using mapbroker::File;
using mapbroker::c_face::Answer;
using mapbroker::c_face::Fail;
using mapbroker::c_face::FileOf;

extern "C" {

int mb_open(mb_session* session, const char* name, int flags, mode_t mode) {
  absl::StatusOr<File> file = session->client.Open(name, flags, mode);
  if (!file.ok()) return Answer(file.status());
  mapbroker::c_face::OpenFile open{.stand_in = mapbroker::shm::UniqueFd(memfd_create("mapbroker", MFD_CLOEXEC)),
                                   .file = std::make_shared<File>(*std::move(file))};
  struct stat stat;
  if (!open.stand_in || fstat(open.stand_in.get(), &stat) != 0) {
    return Answer(mapbroker::MakeStatus(errno, "this process can open no further descriptor"));
  }
  open.inode = stat.st_ino;
  const int fd = open.stand_in.get();
  mapbroker::shm::MutexLock lock(session->mutex);
  // If the number is known, the program closed it by itself.
  if (const auto stale = session->files.find(fd); stale != session->files.end()) stale->second.stand_in.release();
  session->files[fd] = std::move(open);
  return fd;
}

int mb_close(mb_session* session, int fd) {
  if (FileOf(*session, fd) == nullptr) return -1;
  mapbroker::shm::MutexLock lock(session->mutex);
  session->files.erase(fd);
  return 0;
}

int mb_ftruncate(mb_session* session, int fd, off_t length) {
  const auto file = FileOf(*session, fd);
  return file == nullptr ? -1 : Answer(file->Ftruncate(static_cast<std::uint64_t>(length)));
}

ssize_t mb_pread(mb_session* session, int fd, void* buffer, size_t count, off_t offset) {
  const auto file = FileOf(*session, fd);
  if (file == nullptr) return -1;
  const absl::StatusOr<std::size_t> read =
      file->Pread({static_cast<std::byte*>(buffer), count}, static_cast<std::uint64_t>(offset));
  return read.ok() ? static_cast<ssize_t>(*read) : Answer(read.status());
}

ssize_t mb_pwrite(mb_session* session, int fd, const void* buffer, size_t count, off_t offset) {
  const auto file = FileOf(*session, fd);
  if (file == nullptr) return -1;
  const absl::Status status =
      file->Pwrite({static_cast<const std::byte*>(buffer), count}, static_cast<std::uint64_t>(offset));
  return status.ok() ? static_cast<ssize_t>(count) : Answer(status);
}

int mb_fstat(mb_session* session, int fd, struct stat* stat) {
  const auto file = FileOf(*session, fd);
  if (file == nullptr) return -1;
  const absl::StatusOr<mapbroker::FileStat> now = file->Stat();
  if (!now.ok()) return Answer(now.status());
  *stat = {};
  stat->st_ino = now->inode;
  stat->st_mode = S_IFREG | now->mode;
  stat->st_nlink = 1;
  stat->st_uid = now->uid;
  stat->st_gid = now->gid;
  stat->st_size = static_cast<off_t>(now->size);
  stat->st_blksize = static_cast<blksize_t>(session->client.page_size());
  stat->st_blocks = static_cast<blkcnt_t>(now->allocated / 512);
  return 0;
}

int mb_unlink(mb_session* session, const char* name) { return Answer(session->client.Unlink(name)); }

int mb_shm_open(mb_session* session, const char* name, int flags, mode_t mode) {
  const absl::StatusOr<std::string> file = mapbroker::c_face::PosixName(name);
  return file.ok() ? mb_open(session, file->c_str(), flags, mode) : Answer(file.status());
}

int mb_shm_unlink(mb_session* session, const char* name) {
  const absl::StatusOr<std::string> file = mapbroker::c_face::PosixName(name);
  return file.ok() ? mb_unlink(session, file->c_str()) : Answer(file.status());
}

int mb_shmget(mb_session* session, key_t key, size_t size, int flags) {
  const absl::StatusOr<int> id = session->client.Shmget(key, size, flags);
  return id.ok() ? *id : Answer(id.status());
}

void* mb_shmat(mb_session* session, int id, const void* addr, int flags) {
  absl::StatusOr<mapbroker::Mapped> mapped = session->session->Attach(id, flags, reinterpret_cast<std::uint64_t>(addr));
  if (!mapped.ok()) {
    Fail(mapped.status());
    return MB_MAP_FAILED;
  }
  return mapbroker::c_face::Keep(*session, *std::move(mapped));
}

int mb_shmdt(mb_session* session, const void* addr) {
  mapbroker::shm::MutexLock lock(session->mutex);
  const auto found = session->pieces.find(static_cast<std::byte*>(const_cast<void*>(addr)));
  if (found == session->pieces.end()) {
    return Answer(mapbroker::MakeStatus(EINVAL, "no segment is attached at the address", "V"));
  }
  const absl::Status status = session->session->Detach(found->second.pool_address);
  if (status.ok()) session->pieces.erase(found);
  return Answer(status);
}

int mb_shmctl(mb_session* session, int id, int command, struct shmid_ds* buffer) {
  switch (command) {
    case IPC_RMID:
      return Answer(session->client.ShmRemove(id));
    case IPC_STAT: {
      const absl::StatusOr<mapbroker::ShmSegment> segment = session->client.ShmStat(id);
      if (!segment.ok()) return Answer(segment.status());
      mapbroker::c_face::CopyOut(*segment, *buffer);
      return 0;
    }
    case IPC_SET:
      return Answer(session->client.ShmSet(id, buffer->shm_perm.uid, buffer->shm_perm.gid, buffer->shm_perm.mode));
    default:
      return Answer(mapbroker::MakeStatus(EINVAL, "shmctl knows IPC_STAT, IPC_SET and IPC_RMID", "V"));
  }
}

}  // extern "C"
