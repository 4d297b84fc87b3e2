// The broker's calls on memory-backed files: those that change what mappings may rely on.
#include <fcntl.h>
#include <sys/shm.h>

#include <cerrno>
#include <memory>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "daemon/broker.h"
#include "daemon/nommu/refusal.h"

namespace mapbroker {

using nommu::Refuse;

namespace {

bool Is(const std::string& name, const char* scheme) { return absl::StartsWith(name, scheme); }

}  // namespace

absl::StatusOr<int> Broker::OpenFile(session::Session& caller, const std::string& name, int flags, mode_t mode) {
  const auto open = [&]() -> absl::StatusOr<FilePointer> {
    if (Is(name, backing::kDeviceScheme)) return devices_.Open(name, flags, caller.peer());
    if (Is(name, backing::kMountScheme)) return mounts_.Open(name, flags, caller.peer());
    return ram_files_.Open(name, flags, mode, caller.peer());
  };
  absl::StatusOr<FilePointer> file = open();
  if (!file.ok()) return file.status();
  if (caller.read_only() && (*file)->writable) {
    return Refuse(EACCES, "", "the session is read-only: open the file O_RDONLY");
  }
  if ((flags & O_TRUNC) != 0 && (*file)->writable && Is(name, backing::kRamScheme)) {
    if (absl::Status status = Ftruncate(**file, 0); !status.ok()) return status;
  }
  return Keep(caller, *std::move(file));
}

absl::StatusOr<backing::FileStat> Broker::StatFile(const std::string& name) const {
  if (Is(name, backing::kMountScheme)) return mounts_.Stat(name);
  if (!Is(name, backing::kDeviceScheme)) return ram_files_.Stat(name);
  const absl::StatusOr<backing::Devices::Found> found = devices_.Look(name);
  if (!found.ok()) return found.status();
  return found->info.stat;
}

absl::Status Broker::UnlinkFile(const std::string& name, const Credentials& who) {
  if (!Is(name, backing::kDeviceScheme) && !Is(name, backing::kMountScheme)) return ram_files_.Unlink(name, who);
  return Refuse(EPERM, "D", "only ram files are unlinked: remove the device, or unmount the image");
}

std::vector<backing::FileStat> Broker::ListFiles(const std::string& prefix, const std::string& after,
                                                 std::size_t most) const {
  // By name, so devices come first and ram files last.
  std::vector<backing::FileStat> listed;
  for (const backing::DeviceInfo& info : devices_.List(prefix)) {
    if (info.stat.name > after && listed.size() < most) listed.push_back(info.stat);
  }
  const auto append = [&](std::vector<backing::FileStat> files) {
    listed.insert(listed.end(), files.begin(), files.end());
  };
  append(mounts_.List(prefix, after, most - listed.size()));
  append(ram_files_.List(prefix, after, most - listed.size()));
  return listed;
}

absl::Status Broker::Ftruncate(const backing::Backing& backing, std::uint64_t size) {
  const auto* const file = dynamic_cast<const backing::RamFile*>(&backing);
  if (file == nullptr) return Refuse(EINVAL, "F", "only ram files have a size that can be set");
  if (!file->writable) return Refuse(EINVAL, "F", "the ram file is not open for writing: open it O_RDWR");
  backing::RamNode& node = file->node();
  {
    // Decided and done under one lock, so that nobody maps meanwhile what is cut off.
    shm::MutexLock lock(mutex_);
    if (size < node.Size()) {
      if (map_.IsMappedSharedFrom(file->id, size / nommu::kPageSize)) {
        return Refuse(ETXTBSY, "F4",
                      absl::StrCat("a shared mapping uses the file past byte ", size,
                                   ": unmap it first; `mapctl maps` shows who has it"));
      }
      map_.DetachFrom(file->id, nommu::PagesOf(size));
      RecordOrDefer();
      node.Shrink(size);
      return absl::OkStatus();
    }
  }
  return node.Grow(size);
}

absl::StatusOr<int> Broker::Shmget(const session::Session& caller, key_t key, std::uint64_t size, int flags) {
  return sysv_.Get(key, size, flags, caller.peer());
}

absl::StatusOr<Attached> Broker::Shmat(session::Session& caller, int id, nommu::PoolAddress address, int flags,
                                       const session::RequestId& request_id) {
  const absl::StatusOr<record::Result> result = Once(caller, request_id, [&]() -> absl::StatusOr<record::Result> {
    const absl::StatusOr<FilePointer> file = sysv_.Open(id, flags, caller.peer());
    if (!file.ok()) return file.status();
    if (address != 0) {
      return Refuse(EINVAL, "V", "an address was asked for: without an MMU addresses cannot be chosen; pass 0");
    }
    if ((flags & SHM_REMAP) != 0) {
      return Refuse(EINVAL, "V", "SHM_REMAP needs an address, and addresses cannot be chosen: leave it out");
    }
    const std::uint32_t prot =
        PROT_READ | ((flags & SHM_RDONLY) != 0 ? 0 : PROT_WRITE) | ((flags & SHM_EXEC) != 0 ? PROT_EXEC : 0);
    const absl::StatusOr<std::uint64_t> size = (*file)->Size();
    if (!size.ok()) return size.status();
    const absl::StatusOr<nommu::Grant> grant =
        Map(caller, {.length = *size, .prot = prot, .flags = MAP_SHARED}, *file, request_id);
    if (!grant.ok()) return grant.status();
    sysv_.NoteAttached(id, caller.peer().pid);
    return ResultOf(*grant, prot);
  });
  if (!result.ok()) return result.status();
  return Attached{GrantOf(*result), result->prot()};
}

absl::Status Broker::Shmdt(session::Session& caller, nommu::PoolAddress address, const session::RequestId& id) {
  const auto detach = [&]() -> absl::StatusOr<record::Result> {
    std::vector<nommu::Freed> freed;
    std::shared_ptr<const nommu::File> file;
    std::uint64_t length = 0;
    {
      shm::MutexLock lock(mutex_);
      const nommu::Mapping* const mapping = map_.FindMapping(caller.space(), address);
      if (mapping != nullptr) file = mapping->region->file;
      if (file == nullptr || !sysv_.IdOf(*file)) {
        return Refuse(EINVAL, "V", absl::StrCat("no segment is attached at pool address 0x", absl::Hex(address)));
      }
      length = mapping->length;
      absl::Status status = map_.Unmap(caller.space(), address, length, freed);
      if (!status.ok()) return status;
      NoteResult(caller, id, {});
      RecordOrDefer();
      CheckStructures();
    }
    sysv_.NoteDetached(*sysv_.IdOf(*file), caller.peer().pid);
    Free(freed);
    Tell(EventKind::kUnmapped, caller, address, length, static_cast<const backing::Backing*>(file.get()));
    return record::Result();
  };
  return Once(caller, id, detach).status();
}

absl::StatusOr<SegmentStat> Broker::ShmStat(const session::Session& caller, int id) const {
  const absl::StatusOr<backing::Segment> segment = sysv_.Stat(id, caller.peer());
  if (!segment.ok()) return segment.status();
  shm::MutexLock lock(mutex_);
  return SegmentStat{*segment, map_.DirectUsers(segment->file)};
}

absl::Status Broker::ShmSet(const session::Session& caller, int id, uid_t uid, gid_t gid, mode_t mode) {
  return sysv_.Set(id, uid, gid, mode, caller.peer());
}

absl::Status Broker::ShmRemove(const session::Session& caller, int id) {
  // Under the lock, so that the last detach comes before or after.
  shm::MutexLock lock(mutex_);
  return sysv_.Remove(
      id,
      [&](const nommu::FileId& file) {
        mutex_.AssertHeld();
        return map_.DirectUsers(file) > 0;
      },
      caller.peer());
}

std::vector<SegmentStat> Broker::ListSegments() const {
  std::vector<SegmentStat> listed;
  for (backing::Segment& segment : sysv_.List()) {
    shm::MutexLock lock(mutex_);
    listed.push_back(SegmentStat{segment, map_.DirectUsers(segment.file)});
  }
  return listed;
}

}  // namespace mapbroker
