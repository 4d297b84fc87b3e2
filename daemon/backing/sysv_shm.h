// V: System V shared memory segments: memory-backed files of fixed size that go by number and key.
#pragma once

#include <sys/ipc.h>
#include <sys/shm.h>

#include <cstdint>
#include <ctime>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "absl/container/btree_map.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "daemon/backing/ram_files.h"
#include "daemon/credentials.h"
#include "shm_backend/mutex.h"

namespace mapbroker::backing {

// The kernel's limits of the same names, and its defaults.
struct SysvLimits {
  std::uint64_t shmmax = UINT64_MAX - (std::uint64_t{1} << 24);  // bytes of a segment
  std::uint64_t shmall = UINT64_MAX - (std::uint64_t{1} << 24);  // pages of all segments
  std::uint64_t shmmni = 4096;                                   // segments
};

// What shmctl(IPC_STAT) says. Times are in seconds since the epoch, 0 for never.
struct Segment {
  int id = 0;
  key_t key = IPC_PRIVATE;
  std::uint64_t size = 0;  // bytes, as asked for
  uid_t uid = 0, cuid = 0;
  gid_t gid = 0, cgid = 0;
  mode_t mode = 0;  // permission bits
  bool marked_destroyed = false;
  pid_t creator = 0;                                    // shm_cpid
  pid_t last = 0;                                       // shm_lpid: the last shmat or shmdt
  std::time_t attached = 0, detached = 0, changed = 0;  // shm_atime, shm_dtime, shm_ctime
  nommu::FileId file;
};

// Thread-safe; outlives the files that it gives out. How many mappings a segment has is the memory map's to know.
class SysvShm {
 public:
  // `ledger`: where they are recorded, null for nowhere.
  SysvShm(RamFiles& files, const SysvLimits& limits, shm::Ledger* ledger = nullptr)
      : files_(files), ledger_(ledger), limits_(limits) {}

  // For segments that are made from now on.
  void SetLimits(const SysvLimits& limits) {
    shm::MutexLock lock(mutex_);
    limits_ = limits;
  }

  // Makes a segment again that was recorded.
  void Restore(int id, const record::Segment& recorded, std::shared_ptr<RamNode> node);
  // After all that is mapped: segments that were removed and are not mapped go, as the killed daemon was about to have
  // it.
  void DropRemoved(const std::function<bool(const nommu::FileId&)>& is_mapped);
  // A file of the segment, as shmat opened it; null if there is none.
  std::shared_ptr<Backing> Reopen(const record::File& recorded);

  // shmget(2): the number of the segment. `flags`: IPC_CREAT, IPC_EXCL and nine permission bits; SHM_HUGETLB is EINVAL,
  // the rest changes nothing. ENOENT, EEXIST, EACCES, EINVAL, ENOSPC, EFBIG, ENOMEM.
  absl::StatusOr<int> Get(key_t key, std::uint64_t size, int flags, const Credentials& who);

  // The file that shmat(2) maps whole, open as `flags` (SHM_RDONLY, SHM_EXEC) need it. EINVAL, EACCES.
  absl::StatusOr<std::shared_ptr<Backing>> Open(int id, int flags, const Credentials& who);
  void NoteAttached(int id, pid_t pid);
  void NoteDetached(int id, pid_t pid);

  // EINVAL; EACCES where the permission bits forbid reading.
  absl::StatusOr<Segment> Stat(int id, const Credentials& who) const;
  std::vector<Segment> List() const;

  // IPC_SET: owner and permission bits. IPC_RMID: the segment goes at once or, if its file is mapped, when the last
  // mapping does. EINVAL, EPERM for all but owner, creator and root.
  absl::Status Set(int id, uid_t uid, gid_t gid, mode_t mode, const Credentials& who);
  absl::Status Remove(int id, const std::function<bool(const nommu::FileId&)>& is_mapped, const Credentials& who);

  // The segment whose file this is, nullopt if it is none.
  static std::optional<int> IdOf(const nommu::File& file);

 private:
  class File;
  struct Entry {
    Segment segment;
    std::shared_ptr<RamNode> node;
  };

  shm::Ledger::Change RecordOf(const Segment& segment) const;
  void Note(const Segment& segment) const;
  absl::StatusOr<Entry*> Find(int id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<int> FindByKey(key_t key, std::uint64_t size, int flags, const Credentials& who)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status CheckLimits(std::uint64_t size) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::shared_ptr<RamNode> Take(int id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void LastDetach(int id);

  RamFiles& files_;
  shm::Ledger* const ledger_;
  mutable shm::Mutex mutex_;
  SysvLimits limits_ ABSL_GUARDED_BY(mutex_);
  int next_id_ ABSL_GUARDED_BY(mutex_) = 0;
  std::uint64_t pages_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::btree_map<int, Entry> segments_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<key_t, int> keys_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace mapbroker::backing
