#include "daemon/nommu/memory_map.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "daemon/nommu/refusal.h"
#include "daemon/nommu/validate.h"

namespace mapbroker::nommu {
namespace {

// The last length that can be rounded up to pages.
constexpr std::uint64_t kLastPage = UINT64_MAX - (kPageSize - 1);

absl::Status SessionEnded() { return Refuse(ESRCH, "U5", "the session has ended: connect anew"); }

absl::Status NoSuchMapping(PoolAddress address, const std::string& rule, const std::string& what_to_do) {
  return Refuse(EINVAL, rule,
                absl::StrCat("no mapping of this address space at pool address 0x", absl::Hex(address), what_to_do));
}

bool IsShareable(const Region& region) {
  return region.kind == MappingKind::kSharedCopy || region.kind == MappingKind::kDirect;
}

FileRange RangeOf(const Region& region) {
  return FileRange{region.first_page(), region.first_page() + region.pages, region.id};
}

// The file's page after the mapping's last, if ftruncate must leave it alone (F4); else 0.
std::uint64_t SharedEnd(const Mapping& mapping) {
  if (mapping.region->kind != MappingKind::kDirect || (mapping.flags & MAP_TYPE) != MAP_SHARED) return 0;
  return mapping.offset / kPageSize + PagesOf(mapping.length);
}

// It is shared, or may come to be.
bool IsShared(MappingKind kind) { return kind == MappingKind::kSharedCopy || kind == MappingKind::kDirect; }

// What a mapping of the region holds, however little of it is mapped: the memory stays as long as the mapping.
std::uint64_t CostOf(const Region& region) { return region.length + region.slack; }

void ChargeMapping(Account* payer, std::uint64_t bytes) {
  if (payer == nullptr) return;
  payer->Add(Resource::kBytes, bytes);
  payer->Add(Resource::kMappings, 1);
}

void GiveBack(Account* payer, std::uint64_t bytes) {
  if (payer == nullptr) return;
  payer->Give(Resource::kBytes, bytes);
  payer->Give(Resource::kMappings, 1);
}

}  // namespace

SpaceId MemoryMap::OpenSpace(std::int32_t pid, Account* payer) {
  const SpaceId space = next_id_++;
  JoinSpace(space, pid, payer);
  return space;
}

void MemoryMap::JoinSpace(SpaceId space, std::int32_t pid, Account* payer) {
  next_id_ = std::max(next_id_, space + 1);
  AddressSpace& joined = spaces_[space];
  if (joined.payer == nullptr) joined.payer = payer;
  joined.pids.push_back(pid);
  processes_.emplace(pid, space);
}

bool MemoryMap::LeaveSpace(SpaceId id, std::int32_t pid, std::size_t most, std::vector<Freed>& freed) {
  const auto space = spaces_.find(id);
  if (space == spaces_.end()) return true;
  std::vector<std::int32_t>& pids = space->second.pids;
  if (pids.size() > 1) {
    pids.erase(std::find(pids.begin(), pids.end(), pid));
    if (std::find(pids.begin(), pids.end(), pid) == pids.end()) processes_.erase({pid, id});
    return true;
  }
  Mappings& mappings = space->second.mappings;
  for (; most > 0 && !mappings.empty(); --most) {
    if (const auto extent = Remove(id, space->second, mappings.begin())) freed.push_back(*extent);
  }
  if (!mappings.empty()) return false;
  processes_.erase({pid, id});
  spaces_.erase(space);
  return true;
}

absl::StatusOr<Reservation> MemoryMap::Reserve(const MapRequest& request, const std::shared_ptr<const File>& file,
                                               bool may_be_direct, SpaceId space) {
  absl::StatusOr<Capabilities> capabilities = ValidateMmapRequest(request, file.get(), profile_);
  if (!capabilities.ok()) return capabilities.status();
  const bool can_be_direct = (*capabilities & kMapDirect) != 0;
  if (can_be_direct && !may_be_direct) {
    capabilities = ValidateCopyInstead(request, *file, *capabilities);
    if (!capabilities.ok()) return capabilities.status();
  }
  MappingKind kind = DetermineKind(request, *capabilities);
  if (kind == MappingKind::kSharedCopy && !file->shareable) kind = MappingKind::kPrivateCopy;

  Reservation reservation;
  if (kind == MappingKind::kSharedCopy || kind == MappingKind::kDirect) {
    absl::StatusOr<Region*> shared = FindToShare(request, *file, kind, can_be_direct);
    if (!shared.ok()) return shared.status();
    reservation.region = *shared;
  }
  if (reservation.region == nullptr) {
    reservation.region = NewRegion(request, request.anonymous() ? nullptr : file, kind);
    reservation.created = true;
  } else {
    ++reservation.region->users;
  }
  if (kind == MappingKind::kDirect && request.shared()) {
    reservation.shared_end = request.offset / kPageSize + PagesOf(request.length);
    CountShared(file->id, reservation.shared_end);
  }
  if (const auto payer = spaces_.find(space); payer != spaces_.end()) {
    if (absl::Status paid = Pay(payer->second.payer, reservation); !paid.ok()) {
      Abandon(reservation);
      return paid;
    }
  }
  return reservation;
}

// Before there is memory, so that nobody holds more than he may even for a moment.
absl::Status MemoryMap::Pay(Account* payer, Reservation& reservation) {
  if (payer == nullptr) return absl::OkStatus();
  const std::uint64_t bytes = CostOf(*reservation.region);
  if (absl::Status status = payer->Take(Resource::kMappings, 1); !status.ok()) return status;
  if (absl::Status status = payer->Take(Resource::kBytes, bytes); !status.ok()) {
    payer->Give(Resource::kMappings, 1);
    return status;
  }
  reservation.payer = payer;
  reservation.paid = bytes;
  return absl::OkStatus();
}

const IntervalIndex* MemoryMap::IndexOf(const FileId& file, MappingKind kind) const {
  const auto found = shareable_.find(Shareable{file, kind});
  return found == shareable_.end() ? nullptr : &found->second;
}

// The region that the request shares, null if it needs one of its own.
absl::StatusOr<Region*> MemoryMap::FindToShare(const MapRequest& request, const File& file, MappingKind kind,
                                               bool can_be_direct) const {
  const std::uint64_t first = request.offset / kPageSize;
  const std::uint64_t end = first + PagesOf(request.length);
  // S12: what lies inside a direct mapping shares it.
  if (const IntervalIndex* direct = IndexOf(file.id, MappingKind::kDirect); direct != nullptr && can_be_direct) {
    if (Region* region = direct->FindContaining(first, end)) return region;
  }
  const IntervalIndex* copies = IndexOf(file.id, MappingKind::kSharedCopy);
  // A copy is not the file, which is what a shared mapping asks for; and only who may read the file may see it (P5).
  if (copies == nullptr || request.shared() || !file.readable) return nullptr;
  // P3.
  Region* const copy =
      profile_.shares_equal_ranges_only ? copies->FindEqual(first, end) : copies->FindContaining(first, end);
  if (copy != nullptr) return copy;
  // S4: where a direct mapping may come to be, the device decides.
  if (kind == MappingKind::kDirect || (can_be_direct && !profile_.shares_equal_ranges_only)) return nullptr;
  const Region* const overlapping = copies->FindOverlapping(first, end);
  if (overlapping == nullptr) return nullptr;
  return Refuse(EINVAL, "S4",
                absl::StrCat("pages ", first, " to ", end, " of the file overlap its copy of pages ",
                             overlapping->first_page(), " to ", overlapping->first_page() + overlapping->pages,
                             " that is in use: map that range, or wait until it is unmapped"));
}

Region* MemoryMap::NewRegion(const MapRequest& request, const std::shared_ptr<const File>& file, MappingKind kind) {
  auto region = std::make_unique<Region>();
  region->id = next_id_++;
  region->file = file;
  region->offset = file == nullptr ? 0 : request.offset;
  region->pages = PagesOf(request.length);
  region->length = region->pages * kPageSize;
  region->prot = request.prot;
  region->kind = kind;
  region->users = 1;
  if (kind == MappingKind::kDirect) {
    region->memory = Memory::kDevice;
  } else if (profile_.has_small_objects && kind != MappingKind::kSharedCopy && request.length < kPageSize) {
    region->memory = Memory::kSmallObject;  // P2; what others may share has pages of its own
    region->length = request.length;
  }
  Region* raw = region.get();
  regions_.emplace(raw->id, std::move(region));
  Index(raw);
  return raw;
}

void MemoryMap::Index(Region* region) {
  if (IsShareable(*region)) shareable_[Shareable{region->file->id, region->kind}].Insert(RangeOf(*region), region);
}

void MemoryMap::Unindex(Region* region) {
  if (!IsShareable(*region)) return;
  const auto index = shareable_.find(Shareable{region->file->id, region->kind});
  // A withdrawn region is out already.
  if (index == shareable_.end() || !index->second.Erase(RangeOf(*region))) return;
  if (index->second.empty()) shareable_.erase(index);
}

void MemoryMap::Place(Region* region, PoolAddress start, std::uint64_t slack) {
  region->start = start;
  region->slack = slack;
  region->placed = true;
  region_pages_ += PagesOf(region->length);
  placed_.emplace(Key{start, region->id}, region);
  NoteRegion(*region);
}

void MemoryMap::Withdraw(Region* region) { Unindex(region); }

void MemoryMap::CountShared(const FileId& file, std::uint64_t end_page) { ++shared_ends_[file][end_page]; }

void MemoryMap::UncountShared(const FileId& file, std::uint64_t end_page) {
  const auto ends = shared_ends_.find(file);
  const auto at = ends->second.find(end_page);
  if (--at->second > 0) return;
  ends->second.erase(at);
  if (ends->second.empty()) shared_ends_.erase(ends);
}

bool MemoryMap::IsMappedSharedFrom(const FileId& file, std::uint64_t first) const {
  const auto ends = shared_ends_.find(file);
  return ends != shared_ends_.end() && ends->second.rbegin()->first > first;
}

void MemoryMap::DetachFrom(const FileId& file, std::uint64_t first) {
  for (;;) {
    const IntervalIndex* const direct = IndexOf(file, MappingKind::kDirect);
    Region* const region = direct == nullptr ? nullptr : direct->FindOverlapping(first, UINT64_MAX);
    if (region == nullptr) return;
    Unindex(region);
    NoteRegion(*region);
  }
}

const Mapping* MemoryMap::FindMapping(SpaceId id, PoolAddress address) const {
  const auto space = spaces_.find(id);
  if (space == spaces_.end()) return nullptr;
  const auto at = space->second.mappings.lower_bound(Key{address, 0});
  return at == space->second.mappings.end() || at->first.start != address ? nullptr : &at->second;
}

std::uint64_t MemoryMap::DirectUsers(const FileId& file) const {
  std::uint64_t users = 0;
  if (const IntervalIndex* direct = IndexOf(file, MappingKind::kDirect)) {
    for (const auto& [range, region] : *direct) users += region->users;
  }
  return users;
}

PoolAddress MemoryMap::BoundOf(const Region& region) const {
  return profile_.grows_into_slack ? region.top() : region.end();
}

Grant MemoryMap::Commit(SpaceId id, const Reservation& reservation, const MapRequest& request) {
  Region* region = reservation.region;
  const PoolAddress start = region->start + (region->file == nullptr ? 0 : request.offset - region->offset);
  const Mapping mapping{
      .region = region,
      .length = profile_.keeps_exact_length ? request.length : PagesOf(request.length) * kPageSize,
      .offset = region->file == nullptr ? 0 : request.offset,
      .prot = request.prot,
      .flags = request.flags,
  };
  if (reservation.shared_end != 0) UncountShared(region->file->id, reservation.shared_end);
  // What it takes beyond the request was not known before.
  if (reservation.payer != nullptr) reservation.payer->Add(Resource::kBytes, CostOf(*region) - reservation.paid);
  Insert(id, spaces_.at(id), start, mapping);
  return Grant{.address = start,
               .length = mapping.length,
               .room = IsShared(region->kind) ? mapping.length : BoundOf(*region) - start,
               .kind = region->kind,
               .existing = !reservation.created};
}

std::optional<Freed> MemoryMap::Abandon(const Reservation& reservation) {
  if (reservation.shared_end != 0) UncountShared(reservation.region->file->id, reservation.shared_end);
  GiveBack(reservation.payer, reservation.paid);
  return Release(reservation.region);
}

std::optional<Freed> MemoryMap::Release(Region* region) {
  if (--region->users > 0) return std::nullopt;
  Unindex(region);
  std::optional<Freed> freed;
  if (region->placed) {
    freed = Freed{region->start, region->length + region->slack, region->memory};
    if (region->memory == Memory::kDevice) freed->file = region->file;
    placed_.erase(Key{region->start, region->id});
    region_pages_ -= PagesOf(region->length);
    NoteRegion(*region);
  }
  regions_.erase(region->id);
  return freed;
}

void MemoryMap::Insert(SpaceId id, AddressSpace& into, PoolAddress start, const Mapping& mapping) {
  InsertAs(id, into, Key{start, next_id_++}, mapping);
}

void MemoryMap::InsertAs(SpaceId id, AddressSpace& into, const Key& key, const Mapping& mapping) {
  NoteMapping(id, key);
  into.mappings.emplace(key, mapping);
  holders_.insert(Holder{mapping.region->id, key.id, id});
  if (const std::uint64_t end = SharedEnd(mapping); end != 0) CountShared(mapping.region->file->id, end);
  ++mappings_;
  mapped_pages_ += PagesOf(mapping.length);
  into.mapped_pages += PagesOf(mapping.length);
}

std::optional<Freed> MemoryMap::Remove(SpaceId id, AddressSpace& from, Mappings::iterator at) {
  Region* region = at->second.region;
  holders_.erase(Holder{region->id, at->first.id, id});
  if (const std::uint64_t end = SharedEnd(at->second); end != 0) UncountShared(region->file->id, end);
  --mappings_;
  mapped_pages_ -= PagesOf(at->second.length);
  from.mapped_pages -= PagesOf(at->second.length);
  NoteMapping(id, at->first);
  from.mappings.erase(at);
  GiveBack(from.payer, CostOf(*region));
  Freed closed{region->start, region->length, region->memory, region->file, /*last=*/false};
  std::optional<Freed> freed = Release(region);
  if (!freed && profile_.closes_each_mapping && closed.memory == Memory::kDevice) freed = std::move(closed);
  return freed;
}

absl::Status MemoryMap::Unmap(SpaceId id, PoolAddress address, std::uint64_t length, std::vector<Freed>& freed) {
  const auto space = spaces_.find(id);
  if (space == spaces_.end()) return SessionEnded();
  if (profile_.unmaps_whole_mappings_only) return UnmapWhole(id, space->second, address, length, freed);
  return UnmapPart(id, space->second, address, length, freed);
}

absl::Status MemoryMap::UnmapWhole(SpaceId id, AddressSpace& space, PoolAddress address, std::uint64_t length,
                                   std::vector<Freed>& freed) {
  auto at = space.mappings.lower_bound(Key{address, 0});
  const auto starts_here = [&] { return at != space.mappings.end() && at->first.start == address; };
  if (!starts_here()) return NoSuchMapping(address, "U1", ": name a mapping by its start (P4)");
  const std::uint64_t listed = at->second.length;
  // Several mappings may start here; the one that is as long as named is meant.
  while (starts_here() && length != 0 && at->second.length != length) ++at;
  if (!starts_here()) {
    return NoSuchMapping(address, "U1",
                         absl::StrCat(" is ", length, " bytes long, but one is ", listed,
                                      ": only whole mappings can be unmapped; pass its length or 0 (P4)"));
  }
  if (const auto extent = Remove(id, space, at)) freed.push_back(*extent);
  return absl::OkStatus();
}

absl::Status MemoryMap::UnmapPart(SpaceId id, AddressSpace& space, PoolAddress address, std::uint64_t length,
                                  std::vector<Freed>& freed) {
  if (length == 0 || address > kLastPage || length > kLastPage - address) {
    return Refuse(EINVAL, "P4", "length is 0 or goes past the address space: pass the bytes to unmap");
  }
  const PoolAddress end = address + PagesOf(length) * kPageSize;

  // A mapping that is exactly the range goes, whatever it is of.
  for (auto at = space.mappings.lower_bound(Key{address, 0}); at != space.mappings.end() && at->first.start == address;
       ++at) {
    if (at->first.start + at->second.length == end) {
      if (const auto extent = Remove(id, space, at)) freed.push_back(*extent);
      return absl::OkStatus();
    }
  }

  // Otherwise the range must lie in one anonymous mapping. Its memory is nobody else's, so nothing can start between
  // its start and the address.
  auto at = space.mappings.upper_bound(Key{address, UINT64_MAX});
  if (at == space.mappings.begin() || (--at)->second.region->file != nullptr ||
      end > at->first.start + at->second.length) {
    return NoSuchMapping(address, "U1",
                         " holds the whole range: a mapping of a file is unmapped whole, anonymous memory "
                         "within one mapping (P4)");
  }
  if (address % kPageSize != 0) {
    return Refuse(EINVAL, "P4", "the address is not a multiple of the page size: unmap whole pages");
  }

  const PoolAddress start = at->first.start;
  const Mapping whole = at->second;
  const bool splits = start < address && end < start + whole.length;
  if (splits && space.mappings.size() >= limits_.max_map_count) {
    return Refuse(ENOMEM, "M21", "the address space has too many mappings to split one: unmap whole mappings first");
  }
  if (splits && space.payer != nullptr) {
    // Kept until both parts are charged.
    if (absl::Status status = space.payer->Take(Resource::kMappings, 1); !status.ok()) return status;
  }
  // What is left on either side becomes a mapping of a region of its own. Memory past the mapping's end, which mremap
  // left there, stays with what lies before it.
  const PoolAddress region_end = whole.region->end();
  const std::uint64_t slack = whole.region->slack;
  Remove(id, space, at);
  const auto keep = [&](PoolAddress first, std::uint64_t length, PoolAddress memory_end, std::uint64_t slack) {
    const MapRequest piece{.length = memory_end - first, .prot = whole.prot, .flags = whole.flags};
    Mapping mapping = whole;
    mapping.region = NewRegion(piece, nullptr, MappingKind::kAnonymous);
    mapping.length = length;
    Place(mapping.region, first, slack);
    Insert(id, space, first, mapping);
    ChargeMapping(space.payer, CostOf(*mapping.region));
  };
  const PoolAddress mapping_end = start + whole.length;
  if (start < address) keep(start, address - start, address, 0);
  if (end < mapping_end) keep(end, mapping_end - end, region_end, slack);
  if (splits && space.payer != nullptr) space.payer->Give(Resource::kMappings, 1);
  const PoolAddress freed_end = end < mapping_end ? end : region_end + slack;
  freed.push_back(Freed{address, freed_end - address, Memory::kPages});
  return absl::OkStatus();
}

absl::StatusOr<std::uint64_t> MemoryMap::Remap(SpaceId id, const RemapRequest& request) {
  const auto space = spaces_.find(id);
  if (space == spaces_.end()) return SessionEnded();
  if (request.old_length > kLastPage || request.new_length > kLastPage || request.old_length == 0 ||
      request.new_length == 0) {
    return Refuse(EINVAL, "U3", "a length is 0 or rounds up past the address space: pass both lengths in bytes");
  }
  if (request.address % kPageSize != 0) {
    return Refuse(EINVAL, "U3", "the address is not a multiple of the page size: pass the start of a mapping");
  }
  if ((request.flags & MREMAP_FIXED) != 0 && request.new_address != request.address) {
    return Refuse(EINVAL, "U3", "MREMAP_FIXED to another address: without an MMU a mapping cannot move");
  }
  const std::uint64_t old_pages = PagesOf(request.old_length), new_pages = PagesOf(request.new_length);

  Mappings& mappings = space->second.mappings;
  auto at = mappings.lower_bound(Key{request.address, 0});
  const auto starts_here = [&] { return at != mappings.end() && at->first.start == request.address; };
  if (!starts_here()) return NoSuchMapping(request.address, "U3", ": name a mapping by its start");
  while (starts_here() && PagesOf(at->second.length) != old_pages) ++at;
  if (!starts_here()) {
    return Refuse(profile_.faults_wrong_old_length ? EFAULT : EINVAL, "U3",
                  "no mapping at the address has the old length: pass the length that is listed");
  }
  Mapping& mapping = at->second;
  if (IsShared(mapping.region->kind)) {
    return Refuse(EPERM, "U3", "the mapping is or may be shared, so its length cannot change: unmap it and map anew");
  }
  const std::uint64_t room = BoundOf(*mapping.region) - request.address;
  if (new_pages * kPageSize > room) {
    return Refuse(
        ENOMEM, "U3",
        absl::StrCat("the mapping was made with ", room, " bytes and cannot grow past them: map more and copy"));
  }
  mapped_pages_ += new_pages - PagesOf(mapping.length);
  space->second.mapped_pages += new_pages - PagesOf(mapping.length);
  mapping.length = new_pages * kPageSize;
  NoteMapping(id, at->first);
  return mapping.length;
}

std::vector<Row> MemoryMap::ListRegions(Cursor& cursor, std::size_t most) const {
  std::vector<Row> rows;
  for (auto at = placed_.upper_bound(Key{cursor.start, cursor.id}); at != placed_.end() && rows.size() < most; ++at) {
    const Region& region = *at->second;
    cursor = Cursor{.space = 0, .start = at->first.start, .id = at->first.id};
    rows.push_back(Row{.start = region.start,
                       .end = region.end(),
                       .prot = region.prot,
                       .kind = region.kind,
                       .shared = region.kind == MappingKind::kDirect,
                       .offset = region.offset,
                       .file = region.file,
                       .pids = PidsOf(region)});
  }
  return rows;
}

std::vector<Row> MemoryMap::ListMappings(std::int32_t pid, Cursor& cursor, std::size_t most) const {
  std::vector<Row> rows;
  for (auto process = processes_.lower_bound({pid, cursor.space}); process != processes_.end() && process->first == pid;
       ++process) {
    const SpaceId id = process->second;
    if (id != cursor.space) cursor = Cursor{.space = id};
    const AddressSpace& space = spaces_.at(id);
    for (auto at = space.mappings.upper_bound(Key{cursor.start, cursor.id}); at != space.mappings.end(); ++at) {
      if (rows.size() == most) return rows;
      const auto& [key, mapping] = *at;
      cursor = Cursor{.space = id, .start = key.start, .id = key.id};
      rows.push_back(Row{.start = key.start,
                         .end = key.start + mapping.length,
                         .prot = mapping.prot,
                         .kind = mapping.region->kind,
                         .shared = mapping.region->file != nullptr && (mapping.flags & MAP_TYPE) == MAP_SHARED,
                         .offset = mapping.offset,
                         .file = mapping.region->file,
                         .pids = {pid}});
    }
  }
  return rows;
}

std::optional<MemoryMap::Found> MemoryMap::FindContaining(std::int32_t pid, PoolAddress address) const {
  for (auto process = processes_.lower_bound({pid, 0}); process != processes_.end() && process->first == pid;
       ++process) {
    const Mappings& mappings = spaces_.at(process->second).mappings;
    for (auto at = mappings.upper_bound(Key{address, UINT64_MAX}); at != mappings.begin();) {
      const auto& [key, mapping] = *--at;
      const Region& region = *mapping.region;
      if (address < key.start + mapping.length) {
        const bool own = region.kind == MappingKind::kAnonymous || region.kind == MappingKind::kPrivateCopy;
        return Found{.end = key.start + mapping.length,
                     .allowed = own ? PROT_READ | PROT_WRITE : mapping.prot & (PROT_READ | PROT_WRITE)};
      }
      // Only mappings of one region and those of a device's memory can lie over each other.
      if (address >= region.end() && region.memory != Memory::kDevice) break;
    }
  }
  return std::nullopt;
}

bool MemoryMap::HasProcess(std::int32_t pid) const {
  const auto at = processes_.lower_bound({pid, 0});
  return at != processes_.end() && at->first == pid;
}

std::vector<std::int32_t> MemoryMap::PidsOf(const Region& region) const {
  std::vector<std::int32_t> pids;
  for (auto at = holders_.lower_bound(Holder{region.id, 0, 0}); at != holders_.end() && at->region == region.id; ++at) {
    const std::vector<std::int32_t>& users = spaces_.at(at->space).pids;
    pids.insert(pids.end(), users.begin(), users.end());
  }
  std::sort(pids.begin(), pids.end());
  return pids;
}

void MemoryMap::NoteRegion(const Region& region) {
  if (collects_changes_) changes_.regions.push_back(region.id);
}

void MemoryMap::NoteMapping(SpaceId space, const Key& key) {
  if (collects_changes_) changes_.mappings.push_back(MappingId{space, key.start, key.id});
}

MemoryMap::Changes MemoryMap::TakeChanges() {
  collects_changes_ = true;
  return std::exchange(changes_, {});
}

const Region* MemoryMap::FindRegion(std::uint64_t id) const {
  const auto found = regions_.find(id);
  return found == regions_.end() || !found->second->placed ? nullptr : found->second.get();
}

const Mapping* MemoryMap::FindMapping(const MappingId& id) const {
  const auto space = spaces_.find(id.space);
  if (space == spaces_.end()) return nullptr;
  const auto mapping = space->second.mappings.find(Key{id.start, id.id});
  return mapping == space->second.mappings.end() ? nullptr : &mapping->second;
}

bool MemoryMap::IsIndexed(const Region& region) const {
  if (!IsShareable(region)) return false;
  const IntervalIndex* const index = IndexOf(region.file->id, region.kind);
  return index != nullptr && index->Contains(RangeOf(region));
}

bool MemoryMap::RestoreRegion(const Region& recorded, bool indexed) {
  if (regions_.contains(recorded.id)) return false;
  auto region = std::make_unique<Region>(recorded);
  region->users = 0;
  Region* const raw = region.get();
  regions_.emplace(raw->id, std::move(region));
  next_id_ = std::max(next_id_, raw->id + 1);
  if (indexed) Index(raw);
  Place(raw, recorded.start, recorded.slack);
  return true;
}

bool MemoryMap::RestoreMapping(const MappingId& id, std::uint64_t region_id, Mapping mapping) {
  const auto space = spaces_.find(id.space);
  const auto region = regions_.find(region_id);
  if (space == spaces_.end() || region == regions_.end()) return false;
  mapping.region = region->second.get();
  const PoolAddress start = mapping.region->start, room = mapping.region->top() - start;
  if (id.start < start || id.start - start > room || mapping.length > room - (id.start - start)) return false;
  next_id_ = std::max(next_id_, id.id + 1);
  ++mapping.region->users;
  InsertAs(id.space, space->second, Key{id.start, id.id}, mapping);
  ChargeMapping(space->second.payer, CostOf(*mapping.region));
  return true;
}

std::vector<Freed> MemoryMap::DropUnused() {
  std::vector<Region*> unused;
  for (const auto& [id, region] : regions_) {
    if (region->users == 0) unused.push_back(region.get());
  }
  std::vector<Freed> freed;
  for (Region* region : unused) {
    region->users = 1;
    freed.push_back(*Release(region));
  }
  return freed;
}

Counts MemoryMap::counts() const {
  return Counts{.regions = placed_.size(),
                .region_pages = region_pages_,
                .mappings = mappings_,
                .mapped_pages = mapped_pages_,
                .spaces = spaces_.size()};
}

SpaceUse MemoryMap::UseOf(SpaceId id) const {
  const auto space = spaces_.find(id);
  if (space == spaces_.end()) return {};
  return SpaceUse{.mappings = space->second.mappings.size(), .mapped_pages = space->second.mapped_pages};
}

std::string MemoryMap::Validate() const {
  PoolAddress last_end = 0;
  std::uint64_t pages = 0;
  for (const auto& [key, region] : placed_) {
    if (key.start != region->start || key.id != region->id) return absl::StrCat("region ", region->id, " is misplaced");
    // Direct regions are windows on a device's memory, which may overlap.
    if (region->start < last_end && region->memory != Memory::kDevice) {
      return absl::StrCat("region ", region->id, " overlaps the one before it");
    }
    if (!regions_.contains(region->id)) return absl::StrCat("region ", region->id, " is placed but gone");
    if (region->memory != Memory::kDevice) last_end = region->top();
    pages += PagesOf(region->length);
  }
  if (pages != region_pages_) return "the count of region pages is wrong";

  absl::flat_hash_map<std::uint64_t, std::uint64_t> mapped;
  std::uint64_t mappings = 0, mapped_pages = 0;
  for (const auto& [id, space] : spaces_) {
    if (space.pids.empty()) return absl::StrCat("address space ", id, " has no process");
    for (const std::int32_t pid : space.pids) {
      if (!processes_.contains({pid, id})) return absl::StrCat("process ", pid, " does not know address space ", id);
    }
    const std::uint64_t mapped_before = mapped_pages;
    for (const auto& [key, mapping] : space.mappings) {
      const Region& region = *mapping.region;
      if (key.start < region.start || key.start + mapping.length > region.top()) {
        return absl::StrCat("mapping ", key.id, " lies outside its region");
      }
      if (!holders_.contains(Holder{region.id, key.id, id})) return absl::StrCat("mapping ", key.id, " holds nothing");
      const bool own = region.kind == MappingKind::kAnonymous || region.kind == MappingKind::kPrivateCopy;
      if (++mapped[region.id] > 1 && own) return absl::StrCat("private region ", region.id, " is shared");
      ++mappings;
      mapped_pages += PagesOf(mapping.length);
    }
    if (mapped_pages - mapped_before != space.mapped_pages) {
      return absl::StrCat("the count of mapped pages of address space ", id, " is wrong");
    }
  }
  for (const auto& [pid, id] : processes_) {
    const auto space = spaces_.find(id);
    if (space == spaces_.end() ||
        std::find(space->second.pids.begin(), space->second.pids.end(), pid) == space->second.pids.end()) {
      return absl::StrCat("process ", pid, " has lost its address space");
    }
  }
  if (mappings != mappings_ || mappings != holders_.size()) return "the count of mappings is wrong";
  if (mapped_pages != mapped_pages_) return "the count of mapped pages is wrong";

  std::uint64_t placed = 0;
  for (const auto& [id, region] : regions_) {
    if (region->users == 0 || region->users < mapped[id]) return absl::StrCat("region ", id, " has too few users");
    placed += region->placed ? 1 : 0;
  }
  if (placed != placed_.size()) return "a placed region is not listed";

  for (const auto& [shareable, index] : shareable_) {
    const auto& [file, kind] = shareable;
    if (index.empty()) return "a file without regions is indexed";
    std::uint64_t last = 0;
    for (const auto& [range, region] : index) {
      if (!(region->file->id == file) || region->kind != kind || !(range == RangeOf(*region))) {
        return absl::StrCat("region ", region->id, " is indexed wrongly");
      }
      if (index.FindContaining(range.first, range.end) == nullptr) return "the index of ranges is wrong";
      const bool disjoint = kind == MappingKind::kSharedCopy && (region->file->capabilities & kMapDirect) == 0;
      if (disjoint && range.first < last) return absl::StrCat("the copies of inode ", file.inode, " overlap");
      last = range.end;
    }
  }
  return "";
}

}  // namespace mapbroker::nommu
