// The broker's records: what is written to the ledger after every change, and how all of it is made again.
#include <algorithm>
#include <cerrno>
#include <functional>
#include <optional>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "daemon/backing/remembered.h"
#include "daemon/broker.h"
#include "daemon/nommu/refusal.h"
#include "daemon/records.h"
#include "shm_backend/failure_point.h"
#include "spdlog/spdlog.h"

namespace mapbroker {
namespace {

using nommu::MappingKind;
using nommu::Memory;
using nommu::Refuse;
using shm::Ledger;
using shm::LedgerKey;

// Runs that nobody may have twice.
class Runs {
 public:
  void Add(std::uint64_t first, std::uint64_t pages) { runs_.push_back({first, pages}); }
  // The first pages of two that overlap, or of one that lies outside; nullopt if there is none.
  std::optional<std::uint64_t> Fault(std::uint64_t pool_pages) {
    Sort();
    std::uint64_t end = 0;
    for (const shm::Run& run : runs_) {
      if (run.first < end || run.pages == 0 || run.first > pool_pages || run.pages > pool_pages - run.first) {
        return run.first;
      }
      end = run.first + run.pages;
    }
    return std::nullopt;
  }
  // What lies between those that may overlap.
  void ForEachGap(std::uint64_t pool_pages, const std::function<void(shm::Run)>& gap) {
    Sort();
    std::uint64_t end = 0;
    for (const shm::Run& run : runs_) {
      if (run.first > end) gap({end, run.first - end});
      end = std::max(end, run.first + run.pages);
    }
    if (end < pool_pages) gap({end, pool_pages - end});
  }

 private:
  void Sort() {
    std::sort(runs_.begin(), runs_.end(), [](const shm::Run& a, const shm::Run& b) { return a.first < b.first; });
  }

  std::vector<shm::Run> runs_;
};

}  // namespace

std::vector<Ledger::Change> Broker::TakeRecords() {
  std::vector<Ledger::Change> records = std::exchange(results_, {});
  const nommu::MemoryMap::Changes changes = map_.TakeChanges();
  for (const std::uint64_t id : changes.regions) {
    Ledger::Change& record = records.emplace_back(Ledger::Change{kRegions, LedgerKey({id})});
    const nommu::Region* const region = map_.FindRegion(id);
    if (region == nullptr) continue;
    record::Region to;
    if (region->file != nullptr) {
      *to.mutable_file() = static_cast<const backing::Backing*>(region->file.get())->Record();
    }
    to.set_offset(region->offset);
    to.set_pages(region->pages);
    to.set_length(region->length);
    to.set_prot(region->prot);
    to.set_kind(static_cast<std::uint32_t>(region->kind));
    to.set_memory(static_cast<std::uint32_t>(region->memory));
    to.set_start(region->start);
    to.set_slack(region->slack);
    to.set_indexed(map_.IsIndexed(*region));
    if (region->memory == Memory::kSmallObject) to.set_owner(small_objects_.OwnerOf(region->start));
    record.value = to.SerializeAsString();
  }
  for (const nommu::MemoryMap::MappingId& id : changes.mappings) {
    Ledger::Change& record = records.emplace_back(Ledger::Change{kMappings, LedgerKey({id.space, id.id})});
    const nommu::Mapping* const mapping = map_.FindMapping(id);
    if (mapping == nullptr) continue;
    record::Mapping to;
    to.set_region(mapping->region->id);
    to.set_start(id.start);
    to.set_length(mapping->length);
    to.set_offset(mapping->offset);
    to.set_prot(mapping->prot);
    to.set_flags(mapping->flags);
    record.value = to.SerializeAsString();
  }
  return records;
}

absl::StatusOr<record::Result> Broker::Once(session::Session& caller, const session::RequestId& id,
                                            const std::function<absl::StatusOr<record::Result>()>& carry_out) {
  if (id.id == 0 || ledger_ == nullptr) return carry_out();
  if (!caller.BeginRequest(id.id)) return Refuse(EALREADY, "", "the call is still being carried out: wait for it");
  const absl::Cleanup end = [&] { caller.EndRequest(id.id); };
  if (id.again) {
    const auto recorded = ledger_->Get(kResults, LedgerKey({caller.id(), id.id}));
    if (!recorded.ok()) return CannotRecord("whether the call was carried out before is not known, and it");
    if (*recorded) return ParseRecord<record::Result>(**recorded);
  }
  absl::StatusOr<record::Result> result = carry_out();
  shm::FailAt(shm::Point::kAnswer);
  return result;
}

void Broker::NoteResult(session::Session& caller, const session::RequestId& id, const record::Result& result) {
  if (id.id == 0 || ledger_ == nullptr) return;
  for (const std::uint64_t answered : caller.TakeResultsBelow(id.done)) {
    results_.push_back({kResults, LedgerKey({caller.id(), answered})});
  }
  results_.push_back({kResults, LedgerKey({caller.id(), id.id}), result.SerializeAsString()});
  caller.NoteResult(id.id);
}

void Broker::ForgetResult(session::Session& caller, const session::RequestId& id) {
  if (id.id != 0) results_.push_back({kResults, LedgerKey({caller.id(), id.id})});
}

absl::Status Broker::Record() {
  if (ledger_ == nullptr) return absl::OkStatus();
  // What others have begun stands among them, so none is dropped.
  return ledger_->ApplyOrDefer(TakeRecords()).ok() ? absl::OkStatus() : CannotRecord("the mapping");
}

void Broker::RecordOrDefer() {
  if (ledger_ != nullptr) ledger_->ApplyOrDefer(TakeRecords()).IgnoreError();
}

absl::StatusOr<int> Broker::Keep(session::Session& caller, FilePointer file) {
  const record::File record = file->Record();
  const absl::StatusOr<int> number = caller.AddFile(std::move(file));
  if (!number.ok() || ledger_ == nullptr || record.kind() == record::File::KIND_REMEMBERED) return number;
  const Ledger::Change change{kSessionFiles, LedgerKey({caller.id(), static_cast<std::uint64_t>(*number)}),
                              record.SerializeAsString()};
  if (ledger_->Apply({&change, 1}).ok()) return number;
  caller.CloseFile(*number).IgnoreError();
  return CannotRecord("the open file");
}

absl::Status Broker::CloseFile(session::Session& caller, int number) {
  if (absl::Status status = caller.CloseFile(number); !status.ok()) return status;
  if (ledger_ != nullptr) {
    ledger_->ApplyOrDefer({{kSessionFiles, LedgerKey({caller.id(), static_cast<std::uint64_t>(number)})}})
        .IgnoreError();
  }
  return absl::OkStatus();
}

void Broker::MoveFiles(session::Session& from, session::Session& to) {
  to.TakeFiles(from);
  std::vector<Ledger::Change> changes;
  for (const auto& [number, file] : to.OpenedFiles()) {
    const record::File record = file->Record();
    if (record.kind() == record::File::KIND_REMEMBERED) continue;
    changes.push_back(
        {kSessionFiles, LedgerKey({to.id(), static_cast<std::uint64_t>(number)}), record.SerializeAsString()});
  }
  if (ledger_ != nullptr) ledger_->ApplyOrDefer(std::move(changes)).IgnoreError();
}

absl::Status Broker::RestoreDevices() {
  absl::Status status = ledger_->ForEach(kDevices, [&](std::string_view key, std::string_view value) -> absl::Status {
    const auto recorded = ParseRecord<record::Device>(value);
    const std::vector<std::uint64_t> numbers = shm::LedgerNumbers(key);
    if (!recorded.ok() || numbers.size() != 1) return Contradiction("a device");
    if (recorded->pages() > 0) restored_.own.push_back({recorded->first(), recorded->pages()});
    return recorded->has_driver() ? drivers_.Restore(numbers[0], *recorded) : devices_.Restore(numbers[0], *recorded);
  });
  if (!status.ok()) return status;
  std::vector<Ledger::Change> gone;
  status = ledger_->ForEach(kMounts, [&](std::string_view key, std::string_view value) -> absl::Status {
    const auto recorded = ParseRecord<record::Mount>(value);
    const std::vector<std::uint64_t> numbers = shm::LedgerNumbers(key);
    if (!recorded.ok() || numbers.size() != 1) return Contradiction("a mount");
    const absl::Status mounted = mounts_.Restore(numbers[0], *recorded);
    if (mounted.ok() || absl::IsDataLoss(mounted)) return mounted;
    // Whoever may write to the device can do this, and it keeps nobody from starting.
    spdlog::warn("{} is not mounted again: {}", recorded->name(), std::string(mounted.message()));
    gone.push_back({kMounts, std::string(key)});
    return absl::OkStatus();
  });
  ledger_->ApplyOrDefer(std::move(gone)).IgnoreError();
  return status;
}

absl::Status Broker::RestoreFiles() {
  shm::FailAt(shm::Point::kRestoreFiles);
  if (absl::Status status = RestoreDevices(); !status.ok()) return status;
  absl::Status status = ledger_->ForEach(kRamNodes, [&](std::string_view key, std::string_view value) -> absl::Status {
    const auto recorded = ParseRecord<record::RamNode>(value);
    const std::vector<std::uint64_t> numbers = shm::LedgerNumbers(key);
    if (!recorded.ok() || numbers.size() != 1) return Contradiction("a ram file");
    auto node = ram_files_.Restore(recorded->name(), numbers[0], {.uid = recorded->uid(), .gid = recorded->gid()},
                                   recorded->mode(), recorded->unlinked());
    node->RestoreSize(recorded->size(), recorded->unlinked());
    restored_.nodes.emplace(numbers[0], std::move(node));
    return absl::OkStatus();
  });
  if (!status.ok()) return status;
  status = ledger_->ForEach(kPieces, [&](std::string_view key, std::string_view value) -> absl::Status {
    const auto recorded = ParseRecord<record::Piece>(value);
    const std::vector<std::uint64_t> numbers = shm::LedgerNumbers(key);
    if (!recorded.ok() || numbers.size() != 2) return Contradiction("a ram file's pages");
    const auto node = restored_.nodes.find(numbers[0]);
    if (node == restored_.nodes.end()) return Contradiction("pages of a ram file that does not exist");
    const shm::Run run{recorded->first(), recorded->pages()};
    restored_.own.push_back(run);
    if (run.pages > pool_.size() / shm::kPageSize || run.first > pool_.size() / shm::kPageSize - run.pages) {
      return Contradiction("pages that the pool does not have");
    }
    node->second->RestorePiece(numbers[1], run);
    return absl::OkStatus();
  });
  if (!status.ok()) return status;
  return ledger_->ForEach(kSegments, [&](std::string_view key, std::string_view value) -> absl::Status {
    const auto recorded = ParseRecord<record::Segment>(value);
    const std::vector<std::uint64_t> numbers = shm::LedgerNumbers(key);
    if (!recorded.ok() || numbers.size() != 1) return Contradiction("a System V segment");
    const auto node = restored_.nodes.find(recorded->inode());
    if (node == restored_.nodes.end()) return Contradiction("a segment without its file");
    sysv_.Restore(static_cast<int>(numbers[0]), *recorded, node->second);
    return absl::OkStatus();
  });
}

std::shared_ptr<backing::Backing> Broker::Reopen(const record::File& recorded) {
  switch (recorded.kind()) {
    case record::File::KIND_SEGMENT:
      return sysv_.Reopen(recorded);
    case record::File::KIND_DEVICE:
      return devices_.Reopen(recorded);
    case record::File::KIND_DRIVER_MEMORY:
      return drivers_.Reopen(recorded);
    case record::File::KIND_IMAGE:
      return mounts_.Reopen(recorded);
    case record::File::KIND_RAM: {
      const auto node = restored_.nodes.find(recorded.inode());
      if (node == restored_.nodes.end()) return nullptr;
      return std::make_shared<backing::RamFile>(node->second, static_cast<int>(recorded.open_flags()));
    }
    default:
      return backing::Remember(recorded);
  }
}

absl::Status Broker::RestoreRegion(std::uint64_t id, const record::Region& recorded) {
  nommu::Region region{.id = id,
                       .offset = recorded.offset(),
                       .pages = recorded.pages(),
                       .length = recorded.length(),
                       .prot = recorded.prot(),
                       .kind = static_cast<MappingKind>(recorded.kind()),
                       .memory = static_cast<Memory>(recorded.memory()),
                       .start = recorded.start(),
                       .slack = recorded.slack()};
  const std::string name = absl::StrCat("region ", id);
  if (recorded.kind() > static_cast<std::uint32_t>(MappingKind::kDirect) ||
      recorded.memory() > static_cast<std::uint32_t>(Memory::kDevice) ||
      (region.kind == MappingKind::kAnonymous) == recorded.has_file()) {
    return Contradiction(name);
  }
  if (region.start > pool_.size() || region.length > pool_.size() - region.start ||
      region.slack > pool_.size() - region.end() || region.length == 0) {
    return Contradiction(absl::StrCat(name, " lies outside the pool"));
  }
  std::shared_ptr<backing::Backing> file;
  if (recorded.has_file()) {
    region.file = file = Reopen(recorded.file());
    if (file == nullptr) return Contradiction(absl::StrCat(name, " is of a file that does not exist"));
  }
  const std::uint64_t first = region.start / shm::kPageSize;
  switch (region.memory) {
    case Memory::kPages:
      restored_.own.push_back({first, nommu::PagesOf(region.top()) - first});
      break;
    case Memory::kSmallObject:
      if (!small_objects_.Restore(region.start, region.length + region.slack, recorded.owner())) {
        return Contradiction(absl::StrCat(name, " overlaps another"));
      }
      break;
    case Memory::kDevice:
      if (file == nullptr || !file->Restored(region.start, region.length)) {
        return Contradiction(absl::StrCat(name, " is not its file's memory"));
      }
      // A ram file may have let go of its pages while they are mapped; a device has them to its end.
      if (recorded.file().kind() == record::File::KIND_RAM || recorded.file().kind() == record::File::KIND_SEGMENT) {
        restored_.held.push_back({first, nommu::PagesOf(region.end()) - first});
      }
  }
  return map_.RestoreRegion(region, recorded.indexed()) ? absl::OkStatus() : Contradiction(name);
}

absl::Status Broker::RestoreMappings() {
  shm::FailAt(shm::Point::kRestoreMappings);
  std::vector<nommu::Freed> unused;
  {
    shm::MutexLock lock(mutex_);
    absl::Status status = ledger_->ForEach(kRegions, [&](std::string_view key, std::string_view value) -> absl::Status {
      mutex_.AssertHeld();
      const auto recorded = ParseRecord<record::Region>(value);
      const std::vector<std::uint64_t> numbers = shm::LedgerNumbers(key);
      if (!recorded.ok() || numbers.size() != 1) return Contradiction("a region");
      return RestoreRegion(numbers[0], *recorded);
    });
    if (!status.ok()) return status;
    status = ledger_->ForEach(kMappings, [&](std::string_view key, std::string_view value) -> absl::Status {
      mutex_.AssertHeld();
      const auto recorded = ParseRecord<record::Mapping>(value);
      const std::vector<std::uint64_t> numbers = shm::LedgerNumbers(key);
      if (!recorded.ok() || numbers.size() != 2 ||
          !map_.RestoreMapping({numbers[0], recorded->start(), numbers[1]}, recorded->region(),
                               {.length = recorded->length(),
                                .offset = recorded->offset(),
                                .prot = recorded->prot(),
                                .flags = recorded->flags()})) {
        return Contradiction("a mapping");
      }
      return absl::OkStatus();
    });
    if (!status.ok()) return status;
    if (absl::Status freed = FreeWhatIsUnused(); !freed.ok()) return freed;
    for (const auto& [inode, node] : restored_.nodes) {
      // What a process has mapped is its own to change, also past the end of the file.
      if (map_.DirectUsers({backing::kRamDevice, inode}) == 0) node->CleanTail();
    }
    // From now on changes are recorded, and the first is that what nobody maps goes.
    map_.TakeChanges();
    unused = map_.DropUnused();
    RecordOrDefer();
  }
  Free(unused);
  return absl::OkStatus();
}

absl::Status Broker::FreeWhatIsUnused() {
  const std::uint64_t pool_pages = pool_.size() / shm::kPageSize;
  Runs own, all;
  for (const shm::Run& run : restored_.own) own.Add(run.first, run.pages);
  for (const std::uint64_t page : small_objects_.Pages()) own.Add(page, 1);
  if (const auto fault = own.Fault(pool_pages)) {
    return Contradiction(absl::StrCat("page ", *fault, " of the pool has two owners"));
  }
  all = own;
  for (const shm::Run& run : restored_.held) all.Add(run.first, run.pages);
  all.ForEachGap(pool_pages, [&](shm::Run gap) { pages_.Free(gap); });
  small_objects_.CleanRestored();
  return absl::OkStatus();
}

absl::Status Broker::RestoreSessionFile(session::Session& session, int number, std::string_view value) {
  const auto recorded = ParseRecord<record::File>(value);
  if (!recorded.ok()) return recorded.status();
  std::shared_ptr<backing::Backing> file = Reopen(*recorded);
  if (file == nullptr) return Contradiction(absl::StrCat("file ", number, " of session ", session.id()));
  session.RestoreFile(number, std::move(file));
  return absl::OkStatus();
}

void Broker::StartRecording() {
  restored_ = {};
  devices_.EndRestoring();
  shm::MutexLock lock(mutex_);
  map_.TakeChanges();
  sysv_.DropRemoved([&](const nommu::FileId& file) {
    mutex_.AssertHeld();
    return map_.DirectUsers(file) > 0;
  });
}

}  // namespace mapbroker
