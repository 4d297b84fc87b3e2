#include "daemon/broker.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "daemon/nommu/refusal.h"
#include "shm_backend/failure_point.h"
#include "spdlog/spdlog.h"

namespace mapbroker {
namespace {

using nommu::Refuse;

static_assert(nommu::kPageSize == shm::kPageSize);

// Mappings unmapped or rows listed under one hold of the lock: some tens of microseconds.
constexpr std::size_t kPortion = 1024;

// S2 says something of these alone; the others are spared the look at the process.
bool MayBeSharedPrivately(const nommu::MapRequest& request) {
  return !request.anonymous() && !request.shared() && (request.prot & PROT_WRITE) == 0;
}

absl::Status SessionEnded() { return Refuse(ESRCH, "U5", "the session has ended: connect anew"); }

}  // namespace

record::Result Broker::ResultOf(const nommu::Grant& grant, std::uint32_t prot) {
  record::Result result;
  result.set_address(grant.address);
  result.set_length(grant.length);
  result.set_room(grant.room);
  result.set_kind(static_cast<std::uint32_t>(grant.kind));
  result.set_existing(grant.existing);
  result.set_prot(prot);
  return result;
}

nommu::Grant Broker::GrantOf(const record::Result& result) {
  return {.address = result.address(),
          .length = result.length(),
          .room = result.room(),
          .kind = static_cast<nommu::MappingKind>(result.kind()),
          .existing = result.existing()};
}

void Broker::SetLimits(const Limits& limits) {
  nr_trim_pages_ = limits.nr_trim_pages;
  accounts_.SetLimits(limits.users);
  sysv_.SetLimits(limits.sysv);
  drivers_.SetDeadline(std::chrono::milliseconds(limits.driver_deadline_ms));
  shm::MutexLock lock(mutex_);
  map_.SetLimits(limits.map);
}

nommu::SpaceId Broker::OpenSpace(pid_t pid, Account* payer) {
  shm::MutexLock lock(mutex_);
  return map_.OpenSpace(pid, payer);
}

void Broker::JoinSpace(nommu::SpaceId space, pid_t pid, Account* payer) {
  shm::MutexLock lock(mutex_);
  map_.JoinSpace(space, pid, payer);
}

bool Broker::LeaveSpace(nommu::SpaceId space, pid_t pid) {
  std::vector<nommu::Freed> freed;
  bool gone;
  {
    shm::MutexLock lock(mutex_);
    gone = map_.LeaveSpace(space, pid, kPortion, freed);
    RecordOrDefer();
    CheckStructures();
  }
  Free(freed);
  return gone;
}

absl::StatusOr<nommu::Grant> Broker::Mmap(session::Session& caller, const nommu::MapRequest& request, int fd,
                                          const session::RequestId& id) {
  const absl::StatusOr<record::Result> result = Once(caller, id, [&]() -> absl::StatusOr<record::Result> {
    const absl::StatusOr<nommu::Grant> grant =
        Map(caller, request, request.anonymous() ? nullptr : caller.File(fd), id);
    if (!grant.ok()) return grant.status();
    return ResultOf(*grant, request.prot);
  });
  if (!result.ok()) return result.status();
  return GrantOf(*result);
}

absl::StatusOr<nommu::Grant> Broker::Map(session::Session& caller, const nommu::MapRequest& wanted,
                                         const FilePointer& file, const session::RequestId& id) {
  nommu::MapRequest request = wanted;
  request.traced = MayBeSharedPrivately(request) && caller.IsTraced();
  if (caller.read_only() && (request.prot & PROT_WRITE) != 0) {
    return Refuse(EACCES, "", "the session is read-only: connect without read_only to map memory writable");
  }
  absl::StatusOr<nommu::Grant> granted = TryMap(caller, request, file, /*may_be_direct=*/true, id);
  // S10: the device sites no mapping there, so it is asked for a copy.
  if (nommu::ErrnoOf(granted.status()) == ENOSYS && nommu::RuleOf(granted.status()) == "S10") {
    granted = TryMap(caller, request, file, /*may_be_direct=*/false, id);
  }
  if (granted.ok()) Tell(EventKind::kMapped, caller, granted->address, granted->length, file.get());
  return granted;
}

void Broker::Tell(EventKind kind, const session::Session& caller, nommu::PoolAddress address, std::uint64_t length,
                  const backing::Backing* file) {
  events_.Tell(kind, [&] {
    return Event{.kind = kind,
                 .session = caller.id(),
                 .pid = caller.peer().pid,
                 .uid = caller.peer().uid,
                 .address = address,
                 .length = length,
                 .path = file == nullptr ? "" : file->Path()};
  });
}

void Broker::TellFilled(const session::Session& caller, const nommu::Region& region, const backing::Backing& file,
                        const absl::Status& filled) {
  events_.Tell(EventKind::kFilled, [&] {
    return Event{.kind = EventKind::kFilled,
                 .session = caller.id(),
                 .pid = caller.peer().pid,
                 .uid = caller.peer().uid,
                 .error = nommu::ErrnoOf(filled),
                 .sentence = std::string(filled.message()),
                 .length = region.length,
                 .path = file.Path()};
  });
}

absl::StatusOr<nommu::Grant> Broker::TryMap(session::Session& caller, const nommu::MapRequest& request,
                                            const FilePointer& file, bool may_be_direct, const session::RequestId& id) {
  // May I, what kind, where: under the lock, without I/O.
  nommu::Reservation reservation;
  std::shared_ptr<Fill> fill;
  {
    shm::MutexLock lock(mutex_);
    if (!map_.HasSpace(caller.space())) return SessionEnded();
    absl::StatusOr<nommu::Reservation> reserved = map_.Reserve(request, file, may_be_direct, caller.space());
    if (!reserved.ok()) return reserved.status();
    reservation = *reserved;
    if (reservation.created) {
      fill = fills_[reservation.region] = std::make_shared<Fill>();
      if (file != nullptr && reservation.region->kind != nommu::MappingKind::kDirect) ++fills_total_;
    } else if (const auto running = fills_.find(reservation.region); running != fills_.end()) {
      fill = running->second;
    }
    if (fill != nullptr) fill->waiting.push_back(caller.space());
  }

  // A new region is filled outside the lock; everybody else who wants it waits for that.
  absl::Status filled;
  if (reservation.created) filled = FillAndPlace(caller, request, reservation.region, file.get(), *fill);

  std::vector<nommu::Freed> unused;
  absl::StatusOr<nommu::Grant> answer;
  {
    shm::MutexLock lock(mutex_);
    if (!reservation.created && fill != nullptr) {
      while (!fill->done) fill->finished.Wait(mutex_);
      filled = fill->result;
    }
    if (filled.ok() && map_.HasSpace(caller.space())) {
      answer = map_.Commit(caller.space(), reservation, request);
      NoteResult(caller, id, ResultOf(*answer, request.prot));
      if (absl::Status recorded = Record(); !recorded.ok()) {
        ForgetResult(caller, id);
        map_.Unmap(caller.space(), answer->address, answer->length, unused).IgnoreError();
        RecordOrDefer();
        answer = recorded;
      }
    } else {
      if (auto freed = map_.Abandon(reservation)) unused.push_back(*std::move(freed));
      RecordOrDefer();
      answer = filled.ok() ? SessionEnded() : filled;
    }
    CheckStructures();
  }
  Free(unused);
  return answer;
}

absl::Status Broker::FillAndPlace(const session::Session& caller, const nommu::MapRequest& request,
                                  nommu::Region* region, const backing::Backing* file, Fill& fill) {
  const absl::StatusOr<Place> place = MakeContents(caller, request, region, file, fill);
  shm::MutexLock lock(mutex_);
  if (place.ok()) {
    map_.Place(region, place->start, place->slack);
  } else {
    map_.Withdraw(region);
  }
  fills_.erase(region);
  fill.done = true;
  fill.result = place.status();
  fill.finished.NotifyAll();
  return fill.result;
}

absl::StatusOr<Broker::Place> Broker::MakeContents(const session::Session& caller, const nommu::MapRequest& request,
                                                   nommu::Region* region, const backing::Backing* file,
                                                   const Fill& fill) {
  if (region->memory == nommu::Memory::kDevice) {
    nommu::MapRequest pages = request;
    pages.offset = region->offset;
    pages.length = region->length;
    const absl::StatusOr<nommu::PoolAddress> start = file->GetUnmappedArea(pages);
    if (!start.ok()) return start.status();
    return Place{.start = *start};
  }
  absl::StatusOr<Place> place = Allocate(*region, caller.peer().uid);
  // S1: free memory holds zeros.
  if (!place.ok() || file == nullptr) return place;

  const absl::Status filled = backing::Fill(*file, region->offset, pool_.subspan(place->start, region->length),
                                            [&] { return WithdrawIfUnwanted(region, fill); });
  shm::FailAt(shm::Point::kFilled);
  TellFilled(caller, *region, *file, filled);
  if (!filled.ok()) {
    Free({nommu::Freed{place->start, region->length + place->slack, region->memory}});
    return filled;
  }
  return place;
}

absl::StatusOr<Broker::Place> Broker::Allocate(const nommu::Region& region, uid_t owner) {
  if (region.memory == nommu::Memory::kSmallObject) {
    if (const auto object = small_objects_.Allocate(region.length, owner)) {
      return Place{.start = object->start, .slack = object->size - region.length};
    }
  } else {
    const std::uint64_t excess = std::bit_ceil(region.pages) - region.pages;
    const std::uint64_t trim = nr_trim_pages_;
    const bool trimmed = trim > 0 && excess >= trim;
    if (const auto run = pages_.Allocate(region.pages + (trimmed ? 0 : excess))) {
      return Place{.start = run->first * shm::kPageSize, .slack = (run->pages - region.pages) * shm::kPageSize};
    }
  }
  const auto pool = pages_.statistics();
  return Refuse(ENOMEM, "M22",
                absl::StrCat("no contiguous run of ", region.length, " bytes is free (largest: ", pool.largest_free_run,
                             " bytes of ", pool.free, " free): unmap something or use a ",
                             "larger pool; `mapctl maps` shows who holds what"));
}

bool Broker::WithdrawIfUnwanted(nommu::Region* region, const Fill& fill) {
  shm::MutexLock lock(mutex_);
  for (const nommu::SpaceId space : fill.waiting) {
    if (map_.HasSpace(space)) return false;
  }
  // Under the same lock, so that nobody can begin to wait for what is given up.
  map_.Withdraw(region);
  fills_.erase(region);
  return true;
}

absl::Status Broker::Munmap(session::Session& caller, nommu::PoolAddress address, std::uint64_t length,
                            const session::RequestId& id) {
  return Once(caller, id,
              [&]() -> absl::StatusOr<record::Result> {
                std::vector<nommu::Freed> freed;
                {
                  shm::MutexLock lock(mutex_);
                  if (absl::Status status = map_.Unmap(caller.space(), address, length, freed); !status.ok()) {
                    return status;
                  }
                  shm::FailAt(shm::Point::kUnmapped);
                  NoteResult(caller, id, {});
                  RecordOrDefer();
                  CheckStructures();
                }
                shm::FailAt(shm::Point::kRecorded);
                Free(freed);
                Tell(EventKind::kUnmapped, caller, address, length);
                return record::Result();
              })
      .status();
}

absl::StatusOr<std::uint64_t> Broker::Mremap(session::Session& caller, const nommu::RemapRequest& request,
                                             const session::RequestId& id) {
  const absl::StatusOr<record::Result> result = Once(caller, id, [&]() -> absl::StatusOr<record::Result> {
    record::Result resized;
    {
      shm::MutexLock lock(mutex_);
      const absl::StatusOr<std::uint64_t> length = map_.Remap(caller.space(), request);
      if (!length.ok()) return length.status();
      resized.set_length(*length);
      NoteResult(caller, id, resized);
      RecordOrDefer();
      CheckStructures();
    }
    Tell(EventKind::kResized, caller, request.address, resized.length());
    return resized;
  });
  if (!result.ok()) return result.status();
  return result->length();
}

absl::StatusOr<std::span<std::byte>> Broker::MemoryOf(pid_t pid, nommu::PoolAddress address, std::uint64_t length,
                                                      std::uint32_t prot) const {
  const auto found = map_.FindContaining(pid, address);
  if (!found) return Refuse(EIO, "X5", absl::StrCat("process ", pid, " has nothing mapped at pool address ", address));
  if ((prot & ~found->allowed) != 0) {
    return Refuse(EIO, "X5",
                  absl::StrCat("the mapping's protection forbids it, and its memory may have other users: map it ",
                               "writable, or trace process ", pid, " before it maps"));
  }
  return pool_.subspan(address, std::min({length, found->end - address, kMaxPeek}));
}

absl::StatusOr<std::string> Broker::Peek(pid_t pid, nommu::PoolAddress address, std::uint64_t length) const {
  // Under the lock, so that it is still that process's memory.
  shm::MutexLock lock(mutex_);
  const auto memory = MemoryOf(pid, address, length, PROT_READ);
  if (!memory.ok()) return memory.status();
  return std::string(reinterpret_cast<const char*>(memory->data()), memory->size());
}

absl::StatusOr<std::uint64_t> Broker::Poke(pid_t pid, nommu::PoolAddress address, std::string_view bytes) {
  shm::MutexLock lock(mutex_);
  const auto memory = MemoryOf(pid, address, bytes.size(), PROT_WRITE);
  if (!memory.ok()) return memory.status();
  std::memcpy(memory->data(), bytes.data(), memory->size());
  return memory->size();
}

void Broker::Free(const std::vector<nommu::Freed>& freed) {
  for (const nommu::Freed& memory : freed) {
    switch (memory.memory) {
      case nommu::Memory::kPages:
        pages_.Free(shm::Run{memory.start / shm::kPageSize, memory.length / shm::kPageSize});
        break;
      case nommu::Memory::kSmallObject:
        small_objects_.Free(memory.start);
        break;
      case nommu::Memory::kDevice: {
        const auto* const file = static_cast<const backing::Backing*>(memory.file.get());
        file->Close(memory.start, memory.length, memory.last);
      }
    }
  }
}

absl::StatusOr<std::vector<ListedMapping>> Broker::List(pid_t pid, nommu::MemoryMap::Cursor& cursor) const {
  std::vector<nommu::Row> rows;
  {
    shm::MutexLock lock(mutex_);
    if (pid != 0 && cursor.space == 0 && !map_.HasProcess(pid)) {
      return Refuse(ESRCH, "L2", absl::StrCat("process ", pid, " has no session with this daemon"));
    }
    rows = pid == 0 ? map_.ListRegions(cursor, kPortion) : map_.ListMappings(pid, cursor, kPortion);
  }
  std::vector<ListedMapping> listed;
  listed.reserve(rows.size());
  for (nommu::Row& row : rows) {
    const auto* file = static_cast<const backing::Backing*>(row.file.get());
    std::string path = file == nullptr ? "" : file->Path();
    listed.push_back(ListedMapping{std::move(row), std::move(path)});
  }
  return listed;
}

Statistics Broker::GetStatistics() const {
  Statistics statistics;
  {
    shm::MutexLock lock(mutex_);
    statistics.map = map_.counts();
    statistics.filling = fills_.size();
    statistics.fills_total = fills_total_;
  }
  statistics.pool = pages_.statistics();
  return statistics;
}

nommu::SpaceUse Broker::UseOf(nommu::SpaceId space) const {
  shm::MutexLock lock(mutex_);
  return map_.UseOf(space);
}

// After every change while there is little to check; with many mappings at intervals, so that the cost of a change
// stays bounded.
void Broker::CheckStructures() {
#ifdef MAPBROKER_VALIDATE
  constexpr std::uint64_t kMappingsCheckedForAChange = 64;
  if (++unchecked_changes_ * kMappingsCheckedForAChange < map_.counts().mappings) return;
  unchecked_changes_ = 0;
  if (const std::string fault = map_.Validate(); !fault.empty()) {
    spdlog::critical("the memory map contradicts itself: {}", fault);
    std::abort();
  }
#endif
}

}  // namespace mapbroker
