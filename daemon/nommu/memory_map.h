// What is mapped: regions, mappings and address spaces, and the third question of a mapping: where.
//
// A request becomes a mapping in steps, so that reading a file can happen between them, outside any lock:
//
//   Reserve   answers the three questions; names the region, an existing one or a new one that has no memory yet
//   Place     says where a new region lies and that its contents are there (or Withdraw: they could not be had, or the
//             device sites no direct mapping and a copy is made instead)
//   Commit    turns the reservation into a mapping (or Abandon: the caller gave up or is gone)
//
// Not thread-safe. No I/O: memory that is no longer needed is handed back to the caller as runs.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/btree_map.h"
#include "absl/container/btree_set.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/node_hash_map.h"
#include "absl/status/statusor.h"
#include "daemon/account.h"
#include "daemon/nommu/file.h"
#include "daemon/nommu/interval_index.h"
#include "daemon/nommu/map_request.h"
#include "daemon/nommu/profile.h"

namespace mapbroker::nommu {

// Number of an address space, never reused; 0 is none.
using SpaceId = std::uint64_t;

// What a region's memory is, and so to whom it goes back.
enum class Memory {
  kPages,        // whole pages of the region's own
  kSmallObject,  // shorter than a page (P2)
  kDevice,       // the backing device's own
};

// A contiguous run of pool memory holding one piece of a file or of anonymous memory; reference-counted.
struct Region {
  std::uint64_t id = 0;                        // never reused
  std::shared_ptr<const File> file = nullptr;  // null: anonymous
  std::uint64_t offset = 0;                    // bytes from the start of the file
  std::uint64_t pages = 0;                     // asked for, rounded up
  std::uint64_t length = 0;                    // bytes: whole pages, or of a small object (P2) what was asked for
  std::uint32_t prot = 0;                      // of the first request, for the listing (L1)
  MappingKind kind = MappingKind::kAnonymous;
  Memory memory = Memory::kPages;
  bool placed = false;      // has its memory and contents
  PoolAddress start = 0;    // valid once placed
  std::uint64_t slack = 0;  // bytes of its memory after `length` (P6)
  std::uint64_t users = 0;  // mappings and reservations

  PoolAddress end() const { return start + length; }
  PoolAddress top() const { return end() + slack; }
  std::uint64_t first_page() const { return offset / kPageSize; }
};

// Memory that no region uses any more; with P7 also a device's memory of which a mapping has gone.
struct Freed {
  PoolAddress start = 0;
  std::uint64_t length = 0;  // bytes
  Memory memory = Memory::kPages;
  std::shared_ptr<const File> file = nullptr;  // whose memory it is, if it is a device's
  bool last = true;                            // no mapping of it is left
};

// One address space's use of a region.
struct Mapping {
  Region* region = nullptr;
  std::uint64_t length = 0;  // bytes, as it is listed (P8)
  std::uint64_t offset = 0;  // bytes from the start of the file
  std::uint32_t prot = 0;
  std::uint32_t flags = 0;
};

// What a request was granted.
struct Grant {
  PoolAddress address = 0;
  std::uint64_t length = 0;  // bytes (P8)
  std::uint64_t room = 0;    // bytes that mremap may make of it (P6); not less than the length
  MappingKind kind = MappingKind::kAnonymous;
  bool existing = false;  // the region was there before the request
};

// A claim on a region, between Reserve and Commit or Abandon.
struct Reservation {
  Region* region = nullptr;
  bool created = false;          // the caller must fill the region, then Place or Withdraw it
  std::uint64_t shared_end = 0;  // a direct MAP_SHARED mapping: the file's page after its last; else 0
  Account* payer = nullptr;      // who was charged for one mapping and so many bytes
  std::uint64_t paid = 0;
};

// A line of a listing, without its path: that takes I/O.
struct Row {
  PoolAddress start = 0;
  PoolAddress end = 0;
  std::uint32_t prot = 0;
  MappingKind kind = MappingKind::kAnonymous;
  bool shared = false;  // MAP_SHARED of a file
  std::uint64_t offset = 0;
  std::shared_ptr<const File> file;
  std::vector<std::int32_t> pids;
};

// What configuration may set (M21, P6).
struct Limits {
  // Mappings that an address space may have before one of them may be split.
  std::uint64_t max_map_count = 65530;
};

// What one address space has.
struct SpaceUse {
  std::uint64_t mappings = 0;
  std::uint64_t mapped_pages = 0;  // shared ones too
};

struct Counts {
  std::uint64_t regions = 0;
  std::uint64_t region_pages = 0;  // of placed regions
  std::uint64_t mappings = 0;
  std::uint64_t mapped_pages = 0;  // of mappings: what they would need with memory of their own
  std::uint64_t spaces = 0;
};

class MemoryMap {
 public:
  explicit MemoryMap(const Profile& profile, const Limits& limits = {}) : profile_(profile), limits_(limits) {}

  // From the next call on.
  void SetLimits(const Limits& limits) { limits_ = limits; }

  // A new, empty address space of process `pid`. `payer`: whose account its mappings are charged to, null for nobody's;
  // each costs the memory that it holds, which is all of its region's.
  SpaceId OpenSpace(std::int32_t pid, Account* payer = nullptr);
  bool HasSpace(SpaceId space) const { return spaces_.contains(space); }
  // X2: the process uses the address space as well. REQUIRES: it exists, and not only while it is being left; or it is
  // restored. `payer` pays if nobody does yet.
  void JoinSpace(SpaceId space, std::int32_t pid, Account* payer = nullptr);

  // One of the process's uses of the address space ends. If it is the last (X2), unmaps at most `most` mappings and
  // appends the memory that nobody uses any more to `freed`: false while any is left. In steps, so that a large one
  // holds nobody up.
  bool LeaveSpace(SpaceId space, std::int32_t pid, std::size_t most, std::vector<Freed>& freed);

  // Refusals: M1 to M20, S4, S10; ENOMEM when the account of the address space has no room. `file` may be null (M2).
  // `may_be_direct` is false when the device has refused to site the mapping: then it becomes a copy, if it may (S10).
  absl::StatusOr<Reservation> Reserve(const MapRequest& request, const std::shared_ptr<const File>& file,
                                      bool may_be_direct = true, SpaceId space = 0);

  // `slack`: bytes that its memory has beyond the region's length. REQUIRES: the region was created by Reserve and
  // neither placed nor withdrawn yet.
  void Place(Region* region, PoolAddress start, std::uint64_t slack = 0);
  void Withdraw(Region* region);

  // REQUIRES: the region is placed and the address space exists.
  Grant Commit(SpaceId space, const Reservation& reservation, const MapRequest& request);

  // Gives the claim up; the memory, if nobody else uses it.
  std::optional<Freed> Abandon(const Reservation& reservation);

  // F4: whether a MAP_SHARED mapping, or a reservation for one, uses a page of the file at or after `first`.
  bool IsMappedSharedFrom(const FileId& file, std::uint64_t first) const;

  // The file's pages at and after `first` are no longer the device's memory at those places: what maps them directly
  // stays as it is, and is not shared with anyone who asks from now on.
  void DetachFrom(const FileId& file, std::uint64_t first);

  // The mapping of this address space that starts at the address, null if there is none; of several, any. Valid until
  // the next change.
  const Mapping* FindMapping(SpaceId space, PoolAddress address) const;

  // X5: where a mapping of the process holds the address. `allowed`: PROT_READ and PROT_WRITE as it has them, and both
  // for memory that can have no other user (S2).
  struct Found {
    PoolAddress end = 0;
    std::uint32_t allowed = 0;
  };
  std::optional<Found> FindContaining(std::int32_t pid, PoolAddress address) const;

  // Mappings and reservations of the file's own memory (V: shm_nattch). O(regions of the file).
  std::uint64_t DirectUsers(const FileId& file) const;

  // U1, P4. On success appends the memory that nobody uses any more to `freed`.
  absl::Status Unmap(SpaceId space, PoolAddress address, std::uint64_t length, std::vector<Freed>& freed);

  // U3, P6: changes a mapping's length in place; the new length in bytes, whole pages.
  absl::StatusOr<std::uint64_t> Remap(SpaceId space, const RemapRequest& request);

  // Listings by portions: at most `most` rows that come after `cursor`, which moves on (a cursor starts as Cursor{}).
  // An empty answer is the end. Rows are in address order, a process's address spaces one after the other.
  struct Cursor {
    std::uint64_t space = 0;
    PoolAddress start = 0;
    std::uint64_t id = 0;
  };
  std::vector<Row> ListRegions(Cursor& cursor, std::size_t most) const;
  std::vector<Row> ListMappings(std::int32_t pid, Cursor& cursor, std::size_t most) const;
  bool HasProcess(std::int32_t pid) const;

  Counts counts() const;
  // Nothing, if there is no such address space.
  SpaceUse UseOf(SpaceId space) const;

  // What has changed since the last call, for who keeps a record of it: regions that are placed or were, and mappings,
  // each of which is to be looked up, and was removed if it is not found. Something may be named twice. Nothing is
  // collected before the first call.
  struct MappingId {
    SpaceId space = 0;
    PoolAddress start = 0;
    std::uint64_t id = 0;  // never reused
  };
  struct Changes {
    std::vector<std::uint64_t> regions;
    std::vector<MappingId> mappings;
    bool empty() const { return regions.empty() && mappings.empty(); }
  };
  Changes TakeChanges();
  // Null if there is none, or it is not placed.
  const Region* FindRegion(std::uint64_t id) const;
  const Mapping* FindMapping(const MappingId& id) const;
  // Whether others may come to share the region.
  bool IsIndexed(const Region& region) const;

  // Makes again what was recorded: address spaces first, by JoinSpace, then regions, then mappings. False: it
  // contradicts what is there. Regions without a mapping are left out in the end.
  bool RestoreRegion(const Region& region, bool indexed);
  bool RestoreMapping(const MappingId& id, std::uint64_t region, Mapping mapping);
  std::vector<Freed> DropUnused();

  // Checks every structure against the others; the first contradiction as a sentence, empty if there is none.
  std::string Validate() const;

 private:
  // Several mappings may start at the same address, so keys end in a number that is never reused.
  struct Key {
    PoolAddress start = 0;
    std::uint64_t id = 0;
    friend auto operator<=>(const Key&, const Key&) = default;
  };
  using Mappings = absl::btree_map<Key, Mapping>;
  struct AddressSpace {
    Account* payer = nullptr;
    std::vector<std::int32_t> pids;  // its users, not empty; a process may be several
    Mappings mappings;
    std::uint64_t mapped_pages = 0;
  };
  // Regions that a request may share: a file's copies and its direct ones are searched apart.
  using Shareable = std::pair<FileId, MappingKind>;
  struct Holder {
    std::uint64_t region = 0;
    std::uint64_t mapping = 0;
    SpaceId space = 0;
    friend auto operator<=>(const Holder&, const Holder&) = default;
  };

  absl::StatusOr<Region*> FindToShare(const MapRequest& request, const File& file, MappingKind kind,
                                      bool can_be_direct) const;
  static absl::Status Pay(Account* payer, Reservation& reservation);
  // P6: where mappings of the region end at most.
  PoolAddress BoundOf(const Region& region) const;
  const IntervalIndex* IndexOf(const FileId& file, MappingKind kind) const;
  Region* NewRegion(const MapRequest& request, const std::shared_ptr<const File>& file, MappingKind kind);
  void Index(Region* region);
  void Unindex(Region* region);
  std::optional<Freed> Release(Region* region);
  void CountShared(const FileId& file, std::uint64_t end_page);
  void UncountShared(const FileId& file, std::uint64_t end_page);
  void NoteRegion(const Region& region);
  void NoteMapping(SpaceId space, const Key& key);
  void Insert(SpaceId space, AddressSpace& into, PoolAddress start, const Mapping& mapping);
  void InsertAs(SpaceId space, AddressSpace& into, const Key& key, const Mapping& mapping);
  std::optional<Freed> Remove(SpaceId space, AddressSpace& from, Mappings::iterator at);
  absl::Status UnmapWhole(SpaceId id, AddressSpace& space, PoolAddress address, std::uint64_t length,
                          std::vector<Freed>& freed);
  absl::Status UnmapPart(SpaceId id, AddressSpace& space, PoolAddress address, std::uint64_t length,
                         std::vector<Freed>& freed);
  std::vector<std::int32_t> PidsOf(const Region& region) const;

  const Profile& profile_;
  Limits limits_;
  bool collects_changes_ = false;
  Changes changes_;
  std::uint64_t next_id_ = 1;
  absl::flat_hash_map<std::uint64_t, std::unique_ptr<Region>> regions_;  // all, by id
  absl::btree_map<Key, Region*> placed_;                                 // by address
  absl::node_hash_map<Shareable, IntervalIndex> shareable_;
  // Direct MAP_SHARED mappings and reservations, by the file's page after their last: how many end there (F4).
  absl::flat_hash_map<FileId, absl::btree_map<std::uint64_t, std::uint64_t>> shared_ends_;
  absl::node_hash_map<SpaceId, AddressSpace> spaces_;
  absl::btree_set<std::pair<std::int32_t, SpaceId>> processes_;
  absl::btree_set<Holder> holders_;  // which mappings use a region
  std::uint64_t region_pages_ = 0;
  std::uint64_t mappings_ = 0;
  std::uint64_t mapped_pages_ = 0;
};

}  // namespace mapbroker::nommu
