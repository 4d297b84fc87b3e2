// The one object that ties rules, sessions, files and memory together; the way of a request reads top to bottom here.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "daemon/account.h"
#include "daemon/backing/backing.h"
#include "daemon/backing/devices.h"
#include "daemon/backing/drivers.h"
#include "daemon/backing/mounts.h"
#include "daemon/backing/ram_files.h"
#include "daemon/backing/sysv_shm.h"
#include "daemon/events.h"
#include "daemon/nommu/memory_map.h"
#include "daemon/nommu/profile.h"
#include "daemon/session/session.h"
#include "shm_backend/ledger.h"
#include "shm_backend/mutex.h"
#include "shm_backend/page_pool.h"
#include "shm_backend/small_objects.h"

namespace mapbroker {

// A line of /proc/maps.
struct ListedMapping {
  nommu::Row row;
  std::string path;  // empty: anonymous
};

struct Statistics {
  shm::PagePool::Statistics pool;  // bytes
  nommu::Counts map;
  std::uint64_t filling = 0;      // regions being read now
  std::uint64_t fills_total = 0;  // reads of a file range since the start
};

// What configuration may set; the names are the kernel's.
struct Limits {
  nommu::Limits map;
  backing::SysvLimits sysv;
  // A run is allocated as a power of two of pages, and what exceeds the request is given back if it is at least this
  // many pages; 0 keeps it all.
  std::uint64_t nr_trim_pages = 1;
  // How long a driver may take to answer one call, in milliseconds (D12).
  std::uint64_t driver_deadline_ms = 5000;
  UserLimits users = {};
};

// What shmat(2) made.
struct Attached {
  nommu::Grant grant;
  std::uint32_t prot = 0;
};

// A segment and how often it is mapped.
struct SegmentStat {
  backing::Segment segment;
  std::uint64_t nattch = 0;
};

// Bytes that one Peek or Poke copies, under the lock.
inline constexpr std::uint64_t kMaxPeek = 64 << 10;

// Thread-safe. Calls block only while a file is read, and then only those that wait for that range.
class Broker {
 public:
  // `pool` is where this process has the pool's bytes; all outlive the broker. `ledger`: where changes are recorded
  // before they are answered, null for nowhere. `events`: where what happens is told, null for nowhere but the log.
  Broker(const nommu::Profile& profile, shm::PagePool& pages, std::span<std::byte> pool, const Limits& limits = {},
         shm::Ledger* ledger = nullptr, Events* events = nullptr)
      : profile_(profile),
        nr_trim_pages_(limits.nr_trim_pages),
        pages_(pages),
        pool_(pool),
        ledger_(ledger),
        accounts_(limits.users),
        events_(events == nullptr ? own_events_ : *events),
        small_objects_(pages, pool),
        ram_files_(pages, pool, ledger, &accounts_),
        sysv_(ram_files_, limits.sysv, ledger),
        devices_(backing::DeviceEnvironment{profile, pages, pool, &accounts_}, ledger),
        drivers_(devices_, backing::DeviceEnvironment{profile, pages, pool, &accounts_},
                 std::chrono::milliseconds(limits.driver_deadline_ms)),
        mounts_(devices_, ledger),
        map_(profile, limits.map) {}

  const nommu::Profile& profile() const { return profile_; }

  // Makes again what the ledger holds, of a pool of which nothing is free yet: files, then the sessions' address spaces
  // by JoinSpace, then mappings, then open files. DataLoss: the records contradict each other.
  absl::Status RestoreFiles();
  absl::Status RestoreMappings();
  absl::Status RestoreSessionFile(session::Session& session, int number, std::string_view recorded);
  // After that, or at once on a fresh pool, if there is a ledger: changes are recorded from now on.
  void StartRecording();

  // What each user has and may have. Who makes sessions charges them here.
  Accounts& accounts() { return accounts_; }
  // Takes nothing away from who has more by now. Thread-safe, like all the rest.
  void SetLimits(const Limits& limits);

  // `payer`: whose account its mappings are charged to, null for nobody's.
  nommu::SpaceId OpenSpace(pid_t pid, Account* payer = nullptr);
  // X2. REQUIRES: the space of a session that has not ended. `payer` pays if nobody does yet.
  void JoinSpace(nommu::SpaceId space, pid_t pid, Account* payer = nullptr);
  // A user of the address space goes. With the last a portion of it is unmapped; true when all of it is gone. A portion
  // is so small that nobody waits long.
  bool LeaveSpace(nommu::SpaceId space, pid_t pid);

  // Refusals: M1 to M22, S4, S10; EACCES for a writable mapping of a read-only session; the errno of reading the file;
  // ESRCH if the session ended meanwhile.
  //
  // The calls that change mappings take the number of the call, and answer one that is made again as they did at first.
  // EALREADY: it is still being carried out.
  absl::StatusOr<nommu::Grant> Mmap(session::Session& caller, const nommu::MapRequest& request, int fd,
                                    const session::RequestId& id = {});

  absl::Status Munmap(session::Session& caller, nommu::PoolAddress address, std::uint64_t length,
                      const session::RequestId& id = {});

  // The new length in bytes. Refusals: U3.
  absl::StatusOr<std::uint64_t> Mremap(session::Session& caller, const nommu::RemapRequest& request,
                                       const session::RequestId& id = {});

  // X5: bytes of a process's memory, to or from its pool address; how many there are before the mapping's end, at most
  // kMaxPeek. Whether the caller may is not asked here. EIO if the process has nothing mapped there, or not so.
  absl::StatusOr<std::string> Peek(pid_t pid, nommu::PoolAddress address, std::uint64_t length) const;
  absl::StatusOr<std::uint64_t> Poke(pid_t pid, nommu::PoolAddress address, std::string_view bytes);

  // The daemon's own files, by name: "ram:/..." (F), "dev:/..." and "mnt:/..." (D). ENOENT where no such kind exists.
  //
  // The number of the open file in this session, to be closed like any other. Refusals: those of RamFiles, Devices and
  // Mounts; with O_TRUNC those of Ftruncate.
  absl::StatusOr<int> OpenFile(session::Session& caller, const std::string& name, int flags, mode_t mode);
  // X4: the open files of one session become another's, which has none yet.
  void MoveFiles(session::Session& from, session::Session& to);
  // EBADF.
  absl::Status CloseFile(session::Session& caller, int number);
  absl::StatusOr<backing::FileStat> StatFile(const std::string& name) const;
  // EPERM for what is no ram file.
  absl::Status UnlinkFile(const std::string& name, const Credentials& who);
  // At most `most` files whose name begins with `prefix` and comes after `after`, by name.
  std::vector<backing::FileStat> ListFiles(const std::string& prefix, const std::string& after, std::size_t most) const;
  // F1, F2, F4, F5. EINVAL if it is no ram file or not open for writing, ETXTBSY, EFBIG, ENOMEM.
  absl::Status Ftruncate(const backing::Backing& file, std::uint64_t size);

  Events& events() { return events_; }

  // What does not touch mappings is asked of them directly.
  backing::RamFiles& ram_files() { return ram_files_; }
  backing::Devices& devices() { return devices_; }
  backing::Drivers& drivers() { return drivers_; }
  backing::Mounts& mounts() { return mounts_; }

  // System V shared memory (V). EINVAL, EACCES, EPERM, ENOSPC and what else shmget(2), shmat(2) and their kin say.
  absl::StatusOr<int> Shmget(const session::Session& caller, key_t key, std::uint64_t size, int flags);
  absl::StatusOr<Attached> Shmat(session::Session& caller, int id, nommu::PoolAddress address, int flags,
                                 const session::RequestId& request_id = {});
  absl::Status Shmdt(session::Session& caller, nommu::PoolAddress address, const session::RequestId& id = {});
  absl::StatusOr<SegmentStat> ShmStat(const session::Session& caller, int id) const;
  absl::Status ShmSet(const session::Session& caller, int id, uid_t uid, gid_t gid, mode_t mode);
  absl::Status ShmRemove(const session::Session& caller, int id);
  std::vector<SegmentStat> ListSegments() const;

  // The next portion of a listing, empty at its end. pid 0: all regions (L1); else the process's mappings (L2), ESRCH
  // if no session belongs to it.
  absl::StatusOr<std::vector<ListedMapping>> List(pid_t pid, nommu::MemoryMap::Cursor& cursor) const;

  Statistics GetStatistics() const;
  // Nothing, if there is no such address space any more.
  nommu::SpaceUse UseOf(nommu::SpaceId space) const;

 private:
  // The making of one region, for which several requests may wait.
  struct Fill {
    std::vector<nommu::SpaceId> waiting;
    bool done = false;
    absl::Status result;
    shm::CondVar finished;
  };

  // Where a new region lies.
  struct Place {
    nommu::PoolAddress start = 0;
    std::uint64_t slack = 0;  // bytes
  };
  using FilePointer = std::shared_ptr<backing::Backing>;

  absl::StatusOr<std::span<std::byte>> MemoryOf(pid_t pid, nommu::PoolAddress address, std::uint64_t length,
                                                std::uint32_t prot) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<nommu::Grant> Map(session::Session& caller, const nommu::MapRequest& request, const FilePointer& file,
                                   const session::RequestId& id);
  absl::StatusOr<nommu::Grant> TryMap(session::Session& caller, const nommu::MapRequest& request,
                                      const FilePointer& file, bool may_be_direct, const session::RequestId& id);
  // Carries a call out that has not been before; else what it was answered with.
  absl::StatusOr<record::Result> Once(session::Session& caller, const session::RequestId& id,
                                      const std::function<absl::StatusOr<record::Result>()>& carry_out);
  static record::Result ResultOf(const nommu::Grant& grant, std::uint32_t prot);
  static nommu::Grant GrantOf(const record::Result& result);
  void ForgetResult(session::Session& caller, const session::RequestId& id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void NoteResult(session::Session& caller, const session::RequestId& id, const record::Result& result)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status FillAndPlace(const session::Session& caller, const nommu::MapRequest& request, nommu::Region* region,
                            const backing::Backing* file, Fill& fill);
  absl::StatusOr<Place> MakeContents(const session::Session& caller, const nommu::MapRequest& request,
                                     nommu::Region* region, const backing::Backing* file, const Fill& fill);
  absl::StatusOr<Place> Allocate(const nommu::Region& region, uid_t owner);
  bool WithdrawIfUnwanted(nommu::Region* region, const Fill& fill);
  void Free(const std::vector<nommu::Freed>& freed);
  void Tell(EventKind kind, const session::Session& caller, nommu::PoolAddress address, std::uint64_t length,
            const backing::Backing* file = nullptr);
  void TellFilled(const session::Session& caller, const nommu::Region& region, const backing::Backing& file,
                  const absl::Status& filled);
  // What has changed, as records; to be applied before the answer. Nothing was changed if Record fails with ENOSPC, and
  // the caller takes back what it did; what cannot be taken back is deferred.
  std::vector<shm::Ledger::Change> TakeRecords() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status Record() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void RecordOrDefer() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<int> Keep(session::Session& caller, FilePointer file);
  std::shared_ptr<backing::Backing> Reopen(const record::File& recorded);
  absl::Status RestoreDevices();
  absl::Status RestoreRegion(std::uint64_t id, const record::Region& recorded) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status FreeWhatIsUnused() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void CheckStructures() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const nommu::Profile& profile_;
  std::atomic<std::uint64_t> nr_trim_pages_;
  shm::PagePool& pages_;
  const std::span<std::byte> pool_;
  shm::Ledger* const ledger_;
  Accounts accounts_;
  Events own_events_;
  Events& events_;
  shm::SmallObjects small_objects_;
  backing::RamFiles ram_files_;
  backing::SysvShm sysv_;
  backing::Devices devices_;
  backing::Drivers drivers_;
  backing::Mounts mounts_;

  // While all is made again.
  struct Restored {
    absl::flat_hash_map<std::uint64_t, std::shared_ptr<backing::RamNode>> nodes;  // by inode
    std::vector<shm::Run> own;                                                    // of one owner each
    std::vector<shm::Run> held;                                                   // of ram files
  };
  Restored restored_;

  mutable shm::Mutex mutex_;
  nommu::MemoryMap map_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<const nommu::Region*, std::shared_ptr<Fill>> fills_ ABSL_GUARDED_BY(mutex_);
  std::vector<shm::Ledger::Change> results_ ABSL_GUARDED_BY(mutex_);  // to be recorded with what they are of
  std::uint64_t fills_total_ ABSL_GUARDED_BY(mutex_) = 0;
  std::uint64_t unchecked_changes_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace mapbroker
