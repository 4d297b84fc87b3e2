#include "daemon/backing/sysv_shm.h"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "daemon/nommu/refusal.h"
#include "daemon/records.h"
#include "shm_backend/failure_point.h"

namespace mapbroker::backing {
namespace {

using nommu::PagesOf;
using nommu::Refuse;

absl::Status NoSuchSegment(int id) {
  return Refuse(EINVAL, "V", absl::StrCat("there is no segment ", id, ": see `mapctl shm ls`"));
}

// Bytes of memory of a segment are never given out twice, so the access that shmat or shmget ask for is a digit of
// mode.
unsigned WantedBy(int permission_bits) {
  return static_cast<unsigned>(permission_bits >> 6 | permission_bits >> 3 | permission_bits) & 7;
}

bool MayAccess(const Segment& segment, const Credentials& who, unsigned wanted) {
  return mapbroker::MayAccess(who, segment.uid, segment.gid, segment.mode, wanted) ||
         (who.uid == segment.cuid && (segment.mode >> 6 & wanted) == wanted);
}

absl::Status Forbidden(const Segment& segment, const Credentials& who) {
  return Refuse(EACCES, "V",
                absl::StrCat("the permission bits of segment ", segment.id, " do not allow it to user ", who.uid));
}

absl::Status CheckOwner(const Segment& segment, const Credentials& who) {
  if (who.privileged() || who.uid == segment.uid || who.uid == segment.cuid) return absl::OkStatus();
  return Refuse(EPERM, "V", absl::StrCat("segment ", segment.id, " belongs to user ", segment.uid));
}

}  // namespace

// A segment's memory as shmat opens it.
class SysvShm::File final : public RamFile {
 public:
  File(SysvShm& table, int id, std::shared_ptr<RamNode> node, int open_flags)
      : RamFile(std::move(node), open_flags), table_(table), id_(id) {}

  void Close(nommu::PoolAddress start, std::uint64_t length, bool last) const override {
    RamFile::Close(start, length, last);
    if (last) table_.LastDetach(id_);
  }

  record::File Record() const override {
    record::File file = RamFile::Record();
    file.set_kind(record::File::KIND_SEGMENT);
    file.set_segment(id_);
    return file;
  }

  int id() const { return id_; }

 private:
  SysvShm& table_;
  const int id_;
};

shm::Ledger::Change SysvShm::RecordOf(const Segment& segment) const {
  record::Segment to;
  to.set_key(segment.key);
  to.set_size(segment.size);
  to.set_uid(segment.uid);
  to.set_gid(segment.gid);
  to.set_cuid(segment.cuid);
  to.set_cgid(segment.cgid);
  to.set_mode(segment.mode);
  to.set_marked_destroyed(segment.marked_destroyed);
  to.set_creator(segment.creator);
  to.set_last(segment.last);
  to.set_attached(segment.attached);
  to.set_detached(segment.detached);
  to.set_changed(segment.changed);
  to.set_inode(segment.file.inode);
  return {kSegments, shm::LedgerKey({static_cast<std::uint64_t>(segment.id)}), to.SerializeAsString()};
}

void SysvShm::Note(const Segment& segment) const {
  if (ledger_ != nullptr) ledger_->ApplyOrDefer({RecordOf(segment)}).IgnoreError();
}

void SysvShm::Restore(int id, const record::Segment& recorded, std::shared_ptr<RamNode> node) {
  shm::MutexLock lock(mutex_);
  next_id_ = std::max(next_id_, id + 1);
  const Segment segment{.id = id,
                        .key = recorded.key(),
                        .size = recorded.size(),
                        .uid = recorded.uid(),
                        .cuid = recorded.cuid(),
                        .gid = recorded.gid(),
                        .cgid = recorded.cgid(),
                        .mode = recorded.mode(),
                        .marked_destroyed = recorded.marked_destroyed(),
                        .creator = recorded.creator(),
                        .last = recorded.last(),
                        .attached = recorded.attached(),
                        .detached = recorded.detached(),
                        .changed = recorded.changed(),
                        .file = {kRamDevice, node->inode()}};
  segments_.emplace(id, Entry{segment, std::move(node)});
  pages_ += PagesOf(recorded.size());
  if (recorded.key() != IPC_PRIVATE) keys_[recorded.key()] = id;
}

std::shared_ptr<Backing> SysvShm::Reopen(const record::File& recorded) {
  shm::MutexLock lock(mutex_);
  const auto entry = Find(recorded.segment());
  if (!entry.ok()) return nullptr;
  return std::make_shared<File>(*this, recorded.segment(), (*entry)->node, static_cast<int>(recorded.open_flags()));
}

absl::StatusOr<SysvShm::Entry*> SysvShm::Find(int id) {
  const auto found = segments_.find(id);
  if (found == segments_.end()) return NoSuchSegment(id);
  return &found->second;
}

// -1: there is none and it is to be made.
absl::StatusOr<int> SysvShm::FindByKey(key_t key, std::uint64_t size, int flags, const Credentials& who) {
  const auto found = keys_.find(key);
  if (found == keys_.end()) {
    if ((flags & IPC_CREAT) != 0) return -1;
    return Refuse(ENOENT, "V", absl::StrFormat("there is no segment of key 0x%x: give IPC_CREAT", key));
  }
  if ((flags & IPC_CREAT) != 0 && (flags & IPC_EXCL) != 0) {
    return Refuse(EEXIST, "V", absl::StrFormat("a segment of key 0x%x exists: leave IPC_EXCL out", key));
  }
  const Segment& segment = segments_.at(found->second).segment;
  if (!MayAccess(segment, who, WantedBy(flags))) return Forbidden(segment, who);
  if (size > segment.size) {
    return Refuse(EINVAL, "V",
                  absl::StrCat("segment ", segment.id, " has ", segment.size, " bytes, fewer than were asked for"));
  }
  return segment.id;
}

absl::Status SysvShm::CheckLimits(std::uint64_t size) const {
  if (size > limits_.shmmax) {
    return Refuse(EINVAL, "V", absl::StrCat("a segment has from 1 to ", limits_.shmmax, " bytes (shmmax)"));
  }
  // The limit may have been lowered below what there is.
  if (pages_ > limits_.shmall || PagesOf(size) > limits_.shmall - pages_) {
    return Refuse(ENOSPC, "V", absl::StrCat("all segments together may have ", limits_.shmall, " pages (shmall)"));
  }
  if (segments_.size() >= limits_.shmmni) {
    return Refuse(ENOSPC, "V", absl::StrCat("there are ", limits_.shmmni, " segments already (shmmni)"));
  }
  return absl::OkStatus();
}

absl::StatusOr<int> SysvShm::Get(key_t key, std::uint64_t size, int flags, const Credentials& who) {
  if (key != IPC_PRIVATE) {
    shm::MutexLock lock(mutex_);
    const absl::StatusOr<int> known = FindByKey(key, size, flags, who);
    if (!known.ok() || *known >= 0) return known;
  }
  if (size == 0) return Refuse(EINVAL, "V", "a segment has at least one byte");
  if ((flags & SHM_HUGETLB) != 0) {
    return Refuse(EINVAL, "V", "SHM_HUGETLB: the pool as a whole is on huge pages or is not; leave it out");
  }
  {
    shm::MutexLock lock(mutex_);
    if (absl::Status status = CheckLimits(size); !status.ok()) return status;
  }
  // Outside the lock: finding memory may take time. The file's name is what the kernel shows.
  auto node = files_.MakeUnnamed(absl::StrFormat("/SYSV%08x", key), who, static_cast<mode_t>(flags));
  if (!node.ok()) return node.status();
  if (absl::Status status = (*node)->Grow(size); !status.ok()) return status;

  shm::MutexLock lock(mutex_);
  if (absl::Status status = CheckLimits(size); !status.ok()) return status;
  if (key != IPC_PRIVATE) {
    // Somebody may have been faster.
    const absl::StatusOr<int> known = FindByKey(key, size, flags, who);
    if (!known.ok() || *known >= 0) return known;
  }
  const int id = next_id_++;
  Segment segment{.id = id,
                  .key = key,
                  .size = size,
                  .uid = who.uid,
                  .cuid = who.uid,
                  .gid = who.gid,
                  .cgid = who.gid,
                  .mode = static_cast<mode_t>(flags & 0777),
                  .creator = who.pid,
                  .changed = std::time(nullptr),
                  .file = {kRamDevice, (*node)->inode()}};
  if (ledger_ != nullptr) {
    const shm::Ledger::Change record = RecordOf(segment);
    if (!ledger_->Apply({&record, 1}).ok()) {
      return CannotRecord("the segment", "V");
    }
    shm::FailAt(shm::Point::kSegmentRecorded);
  }
  segments_.emplace(id, Entry{segment, *std::move(node)});
  pages_ += PagesOf(size);
  if (key != IPC_PRIVATE) keys_[key] = id;
  return id;
}

absl::StatusOr<std::shared_ptr<Backing>> SysvShm::Open(int id, int flags, const Credentials& who) {
  shm::MutexLock lock(mutex_);
  const absl::StatusOr<Entry*> entry = Find(id);
  if (!entry.ok()) return entry.status();
  const bool read_only = (flags & SHM_RDONLY) != 0;
  const unsigned wanted = kRead | (read_only ? 0u : kWrite) | ((flags & SHM_EXEC) != 0 ? kExecute : 0u);
  if (!MayAccess((*entry)->segment, who, wanted)) return Forbidden((*entry)->segment, who);
  return std::make_shared<File>(*this, id, (*entry)->node, read_only ? O_RDONLY : O_RDWR);
}

void SysvShm::NoteAttached(int id, pid_t pid) {
  shm::MutexLock lock(mutex_);
  if (const auto entry = Find(id); entry.ok()) {
    (*entry)->segment.attached = std::time(nullptr);
    (*entry)->segment.last = pid;
    Note((*entry)->segment);
  }
}

void SysvShm::NoteDetached(int id, pid_t pid) {
  shm::MutexLock lock(mutex_);
  if (const auto entry = Find(id); entry.ok()) {
    (*entry)->segment.detached = std::time(nullptr);
    (*entry)->segment.last = pid;
    Note((*entry)->segment);
  }
}

absl::StatusOr<Segment> SysvShm::Stat(int id, const Credentials& who) const {
  shm::MutexLock lock(mutex_);
  const auto found = segments_.find(id);
  if (found == segments_.end()) return NoSuchSegment(id);
  const Segment& segment = found->second.segment;
  if (!MayAccess(segment, who, kRead)) return Forbidden(segment, who);
  return segment;
}

std::vector<Segment> SysvShm::List() const {
  std::vector<Segment> listed;
  shm::MutexLock lock(mutex_);
  for (const auto& [id, entry] : segments_) listed.push_back(entry.segment);
  return listed;
}

absl::Status SysvShm::Set(int id, uid_t uid, gid_t gid, mode_t mode, const Credentials& who) {
  shm::MutexLock lock(mutex_);
  const absl::StatusOr<Entry*> entry = Find(id);
  if (!entry.ok()) return entry.status();
  Segment& segment = (*entry)->segment;
  if (absl::Status status = CheckOwner(segment, who); !status.ok()) return status;
  segment.uid = uid;
  segment.gid = gid;
  segment.mode = mode & 0777;
  segment.changed = std::time(nullptr);
  Note(segment);
  return absl::OkStatus();
}

std::optional<int> SysvShm::IdOf(const nommu::File& file) {
  const auto* const segment = dynamic_cast<const File*>(&file);
  return segment == nullptr ? std::nullopt : std::optional(segment->id());
}

absl::Status SysvShm::Remove(int id, const std::function<bool(const nommu::FileId&)>& is_mapped,
                             const Credentials& who) {
  std::shared_ptr<RamNode> gone;  // its memory goes after the lock
  shm::MutexLock lock(mutex_);
  const absl::StatusOr<Entry*> entry = Find(id);
  if (!entry.ok()) return entry.status();
  Segment& segment = (*entry)->segment;
  if (absl::Status status = CheckOwner(segment, who); !status.ok()) return status;
  // Nobody finds it by its key from now on.
  if (const auto key = keys_.find(segment.key); key != keys_.end() && key->second == id) keys_.erase(key);
  segment.key = IPC_PRIVATE;
  segment.marked_destroyed = true;
  Note(segment);
  shm::FailAt(shm::Point::kSegmentMarked);
  if (!is_mapped(segment.file)) gone = Take(id);
  return absl::OkStatus();
}

void SysvShm::DropRemoved(const std::function<bool(const nommu::FileId&)>& is_mapped) {
  std::vector<std::shared_ptr<RamNode>> gone;  // their memory goes after the lock
  shm::MutexLock lock(mutex_);
  std::vector<int> removed;
  for (const auto& [id, entry] : segments_) {
    if (entry.segment.marked_destroyed && !is_mapped(entry.segment.file)) removed.push_back(id);
  }
  for (const int id : removed) gone.push_back(Take(id));
}

std::shared_ptr<RamNode> SysvShm::Take(int id) {
  const auto entry = segments_.find(id);
  std::shared_ptr<RamNode> node = std::move(entry->second.node);
  pages_ -= PagesOf(entry->second.segment.size);
  segments_.erase(entry);
  if (ledger_ != nullptr)
    ledger_->ApplyOrDefer({{kSegments, shm::LedgerKey({static_cast<std::uint64_t>(id)})}}).IgnoreError();
  return node;
}

void SysvShm::LastDetach(int id) {
  std::shared_ptr<RamNode> gone;
  shm::MutexLock lock(mutex_);
  const absl::StatusOr<Entry*> entry = Find(id);
  if (!entry.ok()) return;
  Segment& segment = (*entry)->segment;
  segment.detached = std::time(nullptr);
  Note(segment);
  if (segment.marked_destroyed) gone = Take(id);
}

}  // namespace mapbroker::backing
