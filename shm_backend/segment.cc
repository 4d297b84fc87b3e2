#include "shm_backend/segment.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <algorithm>
#include <boost/interprocess/exceptions.hpp>
#include <boost/interprocess/shared_memory_object.hpp>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "shm_backend/available_memory.h"
#include "shm_backend/descriptor_memory.h"
#include "shm_backend/failure_point.h"

namespace mapbroker::shm {
namespace {

namespace ipc = boost::interprocess;
using Kind = SegmentSpec::Kind;

// Where glibc keeps POSIX shared memory objects.
constexpr char kShmDirectory[] = "/dev/shm";

absl::Status Failed(const std::string& what, int error) {
  absl::Status status(absl::ErrnoToStatusCode(error), absl::StrCat(what, ": ", std::strerror(error)));
  // Where nommu::ErrnoOf looks for it.
  status.SetPayload("mapbroker.errno", absl::Cord(std::to_string(error)));
  return status;
}

std::string DirectoryOf(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
}

bool OnHugetlbfs(const std::string& path) {
  struct statfs fs;
  return statfs(DirectoryOf(path).c_str(), &fs) == 0 && fs.f_type == HUGETLBFS_MAGIC;
}

std::string PathOf(const SegmentSpec& spec) { return spec.kind == Kind::kShm ? kShmDirectory + spec.name : spec.name; }

absl::Status CheckSpec(const SegmentSpec& spec) {
  if (spec.size == 0 || spec.size % kPageSize != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("pool size ", spec.size, " is not a positive multiple of the page size ", kPageSize));
  }
  if (spec.kind == Kind::kFile && OnHugetlbfs(spec.name) != spec.huge_pages) {
    return absl::InvalidArgumentError(
        absl::StrCat(spec.name, spec.huge_pages ? " is not on hugetlbfs: leave --huge-pages out or choose another path"
                                                : " is on hugetlbfs: give --huge-pages too"));
  }
  if (!spec.huge_pages) return absl::OkStatus();
  if (spec.kind == Kind::kShm) {
    return absl::InvalidArgumentError("POSIX shared memory has no huge pages: use memfd, or file: on hugetlbfs");
  }
  if (const std::uint64_t huge = HugePageSize(); huge == 0 || spec.size % huge != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("pool size ", spec.size, " is not a multiple of the huge page size ", huge));
  }
  return absl::OkStatus();
}

absl::Status CheckAvailable(const SegmentSpec& spec) {
  std::uint64_t available = spec.huge_pages ? AvailableHugePages() : AvailableMemory();
  std::string where = spec.huge_pages ? "free huge pages (see /proc/sys/vm/nr_hugepages)" : "memory";
  if (spec.kind != Kind::kMemfd && !spec.huge_pages) {
    const std::string directory = DirectoryOf(PathOf(spec));
    if (const std::uint64_t free = AvailableOn(directory); free < available) {
      available = free;
      where = absl::StrCat("room in ", directory);
    }
  }
  if (spec.size <= available) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat("a pool of ", spec.size, " bytes was asked for, but there are ",
                                                   available, " bytes of ", where, ": ask for a smaller pool"));
}

std::string MarkOf(const std::string& path, ino_t inode) { return absl::StrCat(path, ".mapbrokerd-", inode); }

// Empty: another daemon has it, or there is no mark.
UniqueFd LockMark(const std::string& mark, int further_flags = 0) {
  UniqueFd fd(open(mark.c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC | further_flags, 0600));
  if (fd && flock(fd.get(), LOCK_EX | LOCK_NB) != 0) fd.reset();
  return fd;
}

// Makes the name free if a dead daemon's pool stands there.
absl::Status RemoveLeftover(const std::string& path) {
  struct stat existing;
  if (lstat(path.c_str(), &existing) != 0) return absl::OkStatus();
  const std::string mark = MarkOf(path, existing.st_ino);
  if (access(mark.c_str(), F_OK) != 0 || !S_ISREG(existing.st_mode)) {
    return absl::AlreadyExistsError(
        absl::StrCat(path, " exists and was not made by mapbrokerd: remove it or choose another name for the pool"));
  }
  const UniqueFd lock = LockMark(mark);
  if (!lock) {
    return absl::AlreadyExistsError(absl::StrCat("another mapbrokerd has the pool ", path, ": choose another name"));
  }
  if (unlink(path.c_str()) != 0) return Failed(absl::StrCat("cannot remove the old pool ", path), errno);
  unlink(mark.c_str());
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<SegmentSpec> ParseSegmentSpec(const std::string& text) {
  SegmentSpec spec;
  if (text == "memfd") return spec;
  const auto name_after = [&](const char* prefix) {
    if (text.rfind(prefix, 0) != 0) return false;
    spec.name = text.substr(std::strlen(prefix));
    return true;
  };
  if (name_after("shm:")) {
    spec.kind = Kind::kShm;
    if (spec.name.size() < 2 || spec.name[0] != '/' || spec.name.find('/', 1) != std::string::npos) {
      return absl::InvalidArgumentError(absl::StrCat("pool \"", text, "\": shm: is followed by one slash and a name"));
    }
    return spec;
  }
  if (name_after("file:")) {
    spec.kind = Kind::kFile;
    if (spec.name.empty() || spec.name.back() == '/') {
      return absl::InvalidArgumentError(absl::StrCat("pool \"", text, "\": file: is followed by the path of a file"));
    }
    return spec;
  }
  return absl::InvalidArgumentError(absl::StrCat("pool \"", text, "\" is none of memfd, shm:/NAME and file:PATH"));
}

absl::StatusOr<std::unique_ptr<Segment>> Segment::Create(const SegmentSpec& spec) {
  if (absl::Status status = CheckSpec(spec); !status.ok()) return status;
  if (const int error = FailAt(Point::kSegmentCreate)) return Failed("cannot make the pool", error);
  std::unique_ptr<Segment> segment(new Segment);
  if (spec.huge_pages) segment->granularity_ = HugePageSize();
  absl::Status status = spec.kind == Kind::kMemfd ? segment->MakeMemfd(spec) : segment->MakeNamed(spec);
  if (status.ok()) status = segment->CommitAndMap(spec);
  if (!status.ok()) return status;
  return segment;
}

absl::StatusOr<std::unique_ptr<Segment>> Segment::Adopt(const SegmentSpec& spec, const Identity& identity,
                                                        UniqueFd fd) {
  if (absl::Status status = CheckSpec(spec); !status.ok()) return status;
  std::unique_ptr<Segment> segment(new Segment);
  if (spec.huge_pages) segment->granularity_ = HugePageSize();
  if (spec.kind != Kind::kMemfd) {
    const std::string path = PathOf(spec);
    fd = UniqueFd(open(path.c_str(), O_RDWR | O_NOFOLLOW | O_CLOEXEC));
    struct stat named;
    if (fd && fstat(fd.get(), &named) == 0 && named.st_ino == identity.inode) {
      segment->mark_lock_ = LockMark(MarkOf(path, identity.inode), O_CREAT);
      if (!segment->mark_lock_) {
        return absl::AlreadyExistsError(absl::StrCat("another mapbrokerd has the pool ", path));
      }
    }
  }
  if (const int error = FailAt(Point::kSegmentAdopt)) return Failed("cannot look at the old pool", error);
  segment->fd_ = std::move(fd);
  if (!segment->fd_ || segment->identity() != identity || identity.size != spec.size) {
    return absl::NotFoundError("the pool that the ledger is of is not there");
  }
  if (spec.kind != Kind::kMemfd) {
    segment->path_ = PathOf(spec);
    segment->mark_ = MarkOf(segment->path_, identity.inode);
  }
  if (absl::Status status = segment->CommitAndMap(spec); !status.ok()) return status;
  return segment;
}

Segment::Identity Segment::identity() const {
  struct stat stat {};
  fstat(fd_.get(), &stat);
  return {stat.st_dev, stat.st_ino, static_cast<std::uint64_t>(stat.st_size)};
}

void Segment::Leave() { path_.clear(); }

absl::Status Segment::MakeMemfd(const SegmentSpec& spec) {
  if (absl::Status status = CheckAvailable(spec); !status.ok()) return status;
  fd_ = UniqueFd(memfd_create("mapbroker-pool", MFD_CLOEXEC | MFD_ALLOW_SEALING | (spec.huge_pages ? MFD_HUGETLB : 0)));
  if (!fd_) return Failed("cannot make the pool's memfd", errno);
  // A memfd is born with mode 0777, so that anybody who has a read-only descriptor could open it for writing.
  if (fchmod(fd_.get(), 0600) != 0) return Failed("cannot set the mode of the pool", errno);
  if (ftruncate(fd_.get(), static_cast<off_t>(spec.size)) != 0) return Failed("cannot size the pool", errno);
  if (fcntl(fd_.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    return Failed("cannot seal the pool", errno);
  }
  return absl::OkStatus();
}

absl::Status Segment::MakeNamed(const SegmentSpec& spec) {
  const std::string path = PathOf(spec);
  // A leftover goes before the room is measured: its memory counts.
  absl::Status status = RemoveLeftover(path);
  if (status.ok()) status = CheckAvailable(spec);
  if (status.ok()) status = MakeNamedFile(spec, path);
  return status;
}

absl::Status Segment::MakeNamedFile(const SegmentSpec& spec, const std::string& path) {
  if (spec.kind == Kind::kShm) {
    try {
      ipc::shared_memory_object object(ipc::create_only, spec.name.c_str(), ipc::read_write, ipc::permissions(0600));
      fd_ = UniqueFd(fcntl(object.get_mapping_handle().handle, F_DUPFD_CLOEXEC, 0));
    } catch (const ipc::interprocess_exception& error) {
      return Failed(absl::StrCat("cannot make ", spec.name), error.get_native_error());
    }
  } else {
    fd_ = UniqueFd(open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  }
  if (!fd_) return Failed(absl::StrCat("cannot make ", path), errno);
  path_ = path;
  struct stat made;
  if (fstat(fd_.get(), &made) != 0) return Failed(absl::StrCat("cannot look at ", path), errno);
  mark_ = MarkOf(path, made.st_ino);
  mark_lock_ = LockMark(mark_, O_CREAT);
  if (!mark_lock_) return Failed(absl::StrCat("cannot make and lock ", mark_), errno);
  if (ftruncate(fd_.get(), static_cast<off_t>(spec.size)) != 0) return Failed("cannot size the pool", errno);
  return absl::OkStatus();
}

absl::Status Segment::CommitAndMap(const SegmentSpec& spec) {
  // What a daemon before has committed is not gone through page by page again.
  struct stat now {};
  fstat(fd_.get(), &now);
  constexpr std::uint64_t kBlock = 512;  // stat(2)
  const bool committed = static_cast<std::uint64_t>(now.st_blocks) * kBlock >= spec.size;
  if (!committed && fallocate(fd_.get(), 0, 0, static_cast<off_t>(spec.size)) != 0) {
    if (errno == ENOSPC || errno == ENOMEM) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "a pool of ", spec.size, " bytes was asked for, but the memory is not there: ", std::strerror(errno)));
    }
    return Failed("cannot commit the pool's memory", errno);
  }
  try {
    region_ = ipc::mapped_region(DescriptorMemory(fd_.get(), ipc::read_write), ipc::read_write, 0, spec.size);
  } catch (const ipc::interprocess_exception& error) {
    return Failed("cannot map the pool", error.get_native_error());
  }
  return absl::OkStatus();
}

Segment::~Segment() {
  if (path_.empty()) return;
  unlink(path_.c_str());
  if (!mark_.empty()) unlink(mark_.c_str());
}

std::span<std::byte> Segment::bytes() const {
  return {static_cast<std::byte*>(region_.get_address()), region_.get_size()};
}

absl::StatusOr<UniqueFd> Segment::ClientDescriptor(bool writable) const {
  const std::string self = absl::StrCat("/proc/self/fd/", fd_.get());
  UniqueFd fd(FailAt(Point::kClientDescriptor) ? -1 : open(self.c_str(), (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC));
  if (!fd) return Failed("cannot open the pool for a client", errno);
  return fd;
}

}  // namespace mapbroker::shm
