// The one object that ties rules, sessions, files and memory together; the way of a request reads top to bottom here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "daemon/backing/backing.h"
#include "daemon/nommu/memory_map.h"
#include "daemon/nommu/profile.h"
#include "daemon/session/session.h"
#include "shm_backend/mutex.h"
#include "shm_backend/page_pool.h"

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

// Thread-safe. Calls block only while a file is read, and then only those that wait for that range.
class Broker {
 public:
  // `pool` is where this process has the pool's bytes; both outlive the broker.
  Broker(const nommu::Profile& profile, shm::PagePool& pages, std::span<std::byte> pool)
      : profile_(profile), pages_(pages), pool_(pool), map_(profile) {}

  const nommu::Profile& profile() const { return profile_; }

  nommu::SpaceId OpenSpace(pid_t pid);

  // Unmaps a portion of the address space; true when all of it is gone. A portion is so small that nobody waits long.
  bool CloseSpace(nommu::SpaceId space);

  // Refusals: M1 to M22, S4; EACCES for a writable mapping of a read-only session; the errno of reading the file;
  // ESRCH if the session ended meanwhile.
  absl::StatusOr<nommu::Grant> Mmap(session::Session& caller, const nommu::MapRequest& request, int fd);

  absl::Status Munmap(const session::Session& caller, nommu::PoolAddress address, std::uint64_t length);

  // The new length in bytes. Refusals: U3.
  absl::StatusOr<std::uint64_t> Mremap(const session::Session& caller, const nommu::RemapRequest& request);

  // The next portion of a listing, empty at its end. pid 0: all regions (L1); else the process's mappings (L2), ESRCH
  // if no session belongs to it.
  absl::StatusOr<std::vector<ListedMapping>> List(pid_t pid, nommu::MemoryMap::Cursor& cursor) const;

  Statistics GetStatistics() const;

 private:
  // The making of one region, for which several requests may wait.
  struct Fill {
    std::vector<nommu::SpaceId> waiting;
    bool done = false;
    absl::Status result;
    shm::CondVar finished;
  };

  absl::Status FillAndPlace(nommu::Region* region, const backing::Backing* file, Fill& fill);
  absl::StatusOr<nommu::PoolAddress> MakeContents(nommu::Region* region, const backing::Backing* file,
                                                  const Fill& fill);
  bool WithdrawIfUnwanted(nommu::Region* region, const Fill& fill);
  void Free(const std::vector<nommu::Extent>& extents);
  void CheckStructures() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const nommu::Profile& profile_;
  shm::PagePool& pages_;
  const std::span<std::byte> pool_;

  mutable shm::Mutex mutex_;
  nommu::MemoryMap map_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<const nommu::Region*, std::shared_ptr<Fill>> fills_ ABSL_GUARDED_BY(mutex_);
  std::uint64_t fills_total_ ABSL_GUARDED_BY(mutex_) = 0;
  std::uint64_t unchecked_changes_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace mapbroker
