#include "daemon/backing/ram_files.h"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "daemon/nommu/refusal.h"
#include "daemon/records.h"
#include "shm_backend/failure_point.h"

namespace mapbroker::backing {
namespace {

using nommu::kPageSize;
using nommu::PagesOf;
using nommu::Refuse;

// The largest size that a file may have: off_t's.
constexpr std::uint64_t kMaxSize = INT64_MAX;

absl::Status TooBig(std::uint64_t size, std::uint64_t most) {
  return Refuse(EFBIG, "F1", absl::StrCat("a ram file of ", size, " bytes is larger than the ", most, " that can be"));
}

absl::Status NoMemory(std::uint64_t bytes) {
  return Refuse(ENOMEM, "F1",
                absl::StrCat("no run of ", bytes,
                             " bytes is free in the pool: unmap or unlink something, `mapctl maps` "
                             "and `mapctl ram ls` show who holds what"));
}

auto IntervalOf(std::uint64_t first, std::uint64_t end) {
  return boost::icl::interval<std::uint64_t>::right_open(first, end);
}

absl::Status CheckName(const std::string& name) {
  if (!absl::StartsWith(name, absl::StrCat(kRamScheme, "/")) || name.size() < sizeof(kRamScheme) + 1 ||
      name.find('\0') != std::string::npos || absl::EndsWith(name, "/")) {
    return Refuse(EINVAL, "F",
                  "the name of a ram file is ram:/ and at least one character, and does not end in a slash");
  }
  if (name.size() > kMaxRamName) {
    return Refuse(ENAMETOOLONG, "F", absl::StrCat("the name of a ram file has at most ", kMaxRamName, " bytes"));
  }
  return absl::OkStatus();
}

absl::Status NoSuchFile(const std::string& name) {
  return Refuse(ENOENT, "F", absl::StrCat("there is no ", name, ": open it with O_CREAT, or see `mapctl ram ls`"));
}

}  // namespace

RamNode::RamNode(RamFiles& files, std::string name, std::uint64_t inode, const Credentials& owner, mode_t mode,
                 bool unlinked)
    : files_(files),
      name_(std::move(name)),
      inode_(inode),
      uid_(owner.uid),
      gid_(owner.gid),
      mode_(mode & 0777),
      payer_(files.accounts_ == nullptr ? nullptr : &files.accounts_->Of(owner.uid)),
      unlinked_(unlinked) {}

RamNode::~RamNode() {
  Shrink(0);
  if (files_.ledger_ != nullptr) files_.ledger_->ApplyOrDefer({{kRamNodes, shm::LedgerKey({inode_})}}).IgnoreError();
}

shm::Ledger::Change RamNode::RecordOf(std::uint64_t size) const {
  record::RamNode node;
  node.set_name(name_);
  node.set_uid(uid_);
  node.set_gid(gid_);
  node.set_mode(mode_);
  node.set_size(size);
  node.set_unlinked(unlinked_);
  return {kRamNodes, shm::LedgerKey({inode_}), node.SerializeAsString()};
}

// What it is about to be; nothing is done if that cannot be recorded.
absl::Status RamNode::Record(std::uint64_t size, const std::vector<Piece>& added) const {
  if (files_.ledger_ == nullptr) return absl::OkStatus();
  std::vector<shm::Ledger::Change> changes{RecordOf(size)};
  for (const Piece& piece : added) {
    record::Piece run;
    run.set_first(piece.run.first);
    run.set_pages(piece.run.pages);
    changes.push_back({kPieces, shm::LedgerKey({inode_, piece.first}), run.SerializeAsString()});
  }
  const bool recorded = files_.ledger_->Apply(changes).ok();
  shm::FailAt(shm::Point::kRamRecorded);
  if (recorded) return absl::OkStatus();
  return CannotRecord("the change", "F");
}

absl::Status RamNode::Create() {
  absl::StatusOr<Charge> charge = Charge::Take(payer_, Resource::kBytes, kPageSize);
  if (!charge.ok()) return charge.status();
  existence_ = *std::move(charge);
  shm::MutexLock lock(mutex_);
  return Record(0, {});
}

absl::Status RamNode::Pay(std::uint64_t pages) const {
  return payer_ == nullptr ? absl::OkStatus() : payer_->Take(Resource::kBytes, pages * kPageSize);
}

void RamNode::GiveBack(std::uint64_t pages) const {
  if (payer_ != nullptr) payer_->Give(Resource::kBytes, pages * kPageSize);
}

void RamNode::RestorePiece(std::uint64_t first, shm::Run run) {
  if (payer_ != nullptr) payer_->Add(Resource::kBytes, run.pages * kPageSize);
  shm::MutexLock lock(mutex_);
  Add(Piece{first, run});
}

void RamNode::RestoreSize(std::uint64_t size, bool unlinked) {
  shm::MutexLock lock(mutex_);
  size_ = size;
  unlinked_ = unlinked;
}

void RamNode::CleanTail() {
  shm::MutexLock lock(mutex_);
  ZeroTail();
}

void RamNode::ZeroTail() {
  const std::uint64_t kept = size_ % kPageSize;
  if (kept == 0) return;
  for (const Piece& last : PiecesIn(size_ / kPageSize, size_ / kPageSize + 1)) {
    std::memset(files_.pool_.data() + last.run.first * kPageSize + kept, 0, kPageSize - kept);
  }
}

std::string RamNode::Name() const {
  shm::MutexLock lock(mutex_);
  return unlinked_ ? name_ + " (deleted)" : name_;
}

std::uint64_t RamNode::Size() const {
  shm::MutexLock lock(mutex_);
  return size_;
}

absl::Status RamNode::SetUnlinked(bool unlinked) {
  shm::MutexLock lock(mutex_);
  const bool before = std::exchange(unlinked_, unlinked);
  absl::Status status = Record(size_, {});
  if (!status.ok()) unlinked_ = before;
  return status;
}

FileStat RamNode::Stat() const {
  FileStat stat{.name = Name(), .inode = inode_, .uid = uid_, .gid = gid_, .mode = mode_};
  shm::MutexLock lock(mutex_);
  stat.size = size_;
  stat.runs = boost::icl::interval_count(pages_);
  for (const auto& [interval, place] : pages_) stat.allocated += boost::icl::length(interval) * kPageSize;
  return stat;
}

std::vector<RamNode::Piece> RamNode::PiecesIn(std::uint64_t first, std::uint64_t end) const {
  std::vector<Piece> pieces;
  const auto [begin, past] = pages_.equal_range(IntervalOf(first, end));
  for (auto at = begin; at != past; ++at) {
    const std::uint64_t from = std::max(at->first.lower(), first), to = std::min(at->first.upper(), end);
    pieces.push_back(
        Piece{from, {static_cast<std::uint64_t>(static_cast<std::int64_t>(from) + at->second), to - from}});
  }
  return pieces;
}

// The run of a gap has no place yet.
std::vector<RamNode::Piece> RamNode::GapsIn(std::uint64_t first, std::uint64_t end) const {
  std::vector<Piece> gaps;
  for (const Piece& piece : PiecesIn(first, end)) {
    if (first < piece.first) gaps.push_back(Piece{first, {0, piece.first - first}});
    first = piece.first + piece.run.pages;
  }
  if (first < end) gaps.push_back(Piece{first, {0, end - first}});
  return gaps;
}

void RamNode::Add(const Piece& piece) {
  files_.held_.Hold(piece.run);
  pages_.set({IntervalOf(piece.first, piece.first + piece.run.pages),
              static_cast<std::int64_t>(piece.run.first) - static_cast<std::int64_t>(piece.first)});
}

void RamNode::FreePieces(const std::vector<Piece>& pieces) const {
  for (const Piece& piece : pieces) files_.pages_.Free(piece.run);
}

// Finds memory for all of the gaps, in as few runs as can be had: a gap may become several. On failure nothing is kept.
absl::Status RamNode::AllocateGaps(std::vector<Piece>& gaps) const {
  std::vector<Piece> made;
  while (!gaps.empty()) {
    Piece gap = gaps.back();
    gaps.pop_back();
    const std::optional<shm::Run> run = files_.pages_.Allocate(gap.run.pages);
    if (run) {
      made.push_back(Piece{gap.first, *run});
    } else if (gap.run.pages > 1) {
      const std::uint64_t half = gap.run.pages / 2;
      gaps.push_back(Piece{gap.first, {0, half}});
      gaps.push_back(Piece{gap.first + half, {0, gap.run.pages - half}});
    } else {
      FreePieces(made);
      return NoMemory(kPageSize);
    }
  }
  gaps = std::move(made);
  return absl::OkStatus();
}

std::size_t RamNode::Read(std::uint64_t offset, std::span<std::byte> into) const {
  std::vector<Piece> pieces;
  {
    shm::MutexLock lock(mutex_);
    if (offset >= size_) return 0;
    into = into.first(std::min<std::uint64_t>(into.size(), size_ - offset));
    if (into.empty()) return 0;
    pieces = PiecesIn(offset / kPageSize, PagesOf(offset + into.size()));
    for (const Piece& piece : pieces) files_.held_.Hold(piece.run);
  }
  std::memset(into.data(), 0, into.size());
  for (const Piece& piece : pieces) {
    const std::uint64_t from = std::max(piece.first * kPageSize, offset);
    const std::uint64_t to = std::min((piece.first + piece.run.pages) * kPageSize, offset + into.size());
    std::memcpy(into.data() + (from - offset),
                files_.pool_.data() + piece.run.first * kPageSize + (from - piece.first * kPageSize), to - from);
    files_.held_.Drop(piece.run);
  }
  return into.size();
}

absl::Status RamNode::Write(std::uint64_t offset, bool append, std::span<const std::byte> from) {
  if (from.empty()) return absl::OkStatus();
  // Memory for the gaps is found outside the lock, for the gaps that there were then.
  std::vector<Piece> pieces, gaps, memory;
  absl::Status failed;
  for (;;) {
    {
      shm::MutexLock lock(mutex_);
      if (append) offset = size_;
      if (offset > kMaxSize || from.size() > kMaxSize - offset) break;
      const std::uint64_t first = offset / kPageSize, end = PagesOf(offset + from.size());
      std::vector<Piece> gaps_now = GapsIn(first, end);
      if (gaps_now == gaps) {
        const std::uint64_t size = std::max(size_, offset + from.size());
        std::uint64_t added = 0;
        for (const Piece& piece : memory) added += piece.run.pages;
        failed = Pay(added);
        if (failed.ok() && (size != size_ || !memory.empty())) {
          failed = Record(size, memory);
          if (!failed.ok()) GiveBack(added);
        }
        if (!failed.ok()) break;
        for (const Piece& piece : memory) Add(piece);
        size_ = size;
        pieces = PiecesIn(first, end);
        for (const Piece& piece : pieces) files_.held_.Hold(piece.run);
        break;
      }
      gaps = std::move(gaps_now);
    }
    FreePieces(memory);
    memory = gaps;
    if (absl::Status status = AllocateGaps(memory); !status.ok()) return status;
  }
  if (pieces.empty()) {
    FreePieces(memory);
    return failed.ok() ? TooBig(offset, kMaxSize) : failed;
  }
  for (const Piece& piece : pieces) {
    const std::uint64_t begin = std::max(piece.first * kPageSize, offset);
    const std::uint64_t end = std::min((piece.first + piece.run.pages) * kPageSize, offset + from.size());
    std::memcpy(files_.pool_.data() + piece.run.first * kPageSize + (begin - piece.first * kPageSize),
                from.data() + (begin - offset), end - begin);
    files_.held_.Drop(piece.run);
  }
  return absl::OkStatus();
}

absl::Status RamNode::Grow(std::uint64_t size) {
  if (size > kMaxSize) return TooBig(size, kMaxSize);
  {
    shm::MutexLock lock(mutex_);
    if (size_ > 0 && size > size_) {
      if (absl::Status status = Record(size, {}); !status.ok()) return status;
      size_ = size;
    }
    if (size_ > 0 || size == 0) return absl::OkStatus();
  }
  const std::uint64_t pool = files_.pool_.size();
  if (size > pool) return TooBig(size, pool);
  // Before there is memory, so that nobody holds more than he may even for a moment.
  absl::StatusOr<Charge> charge = Charge::Take(payer_, Resource::kBytes, PagesOf(size) * kPageSize);
  if (!charge.ok()) return charge.status();
  const std::optional<shm::Run> run = files_.pages_.Allocate(PagesOf(size));
  if (!run) return NoMemory(size);
  {
    shm::MutexLock lock(mutex_);
    if (size_ == 0) {
      absl::Status status = Record(size, {Piece{0, *run}});
      if (status.ok()) {
        Add(Piece{0, *run});
        size_ = size;
        charge->Keep();
      } else {
        files_.pages_.Free(*run);
      }
      return status;
    }
  }
  // Somebody was faster.
  files_.pages_.Free(*run);
  charge->Reset();
  return Grow(size);
}

// The pieces that go, and what stays of one that is cut in two.
void RamNode::RecordCut(std::uint64_t size) const {
  if (files_.ledger_ == nullptr) return;
  std::vector<shm::Ledger::Change> changes{RecordOf(size)};
  const std::uint64_t end = PagesOf(size);
  const auto [at, past] = pages_.equal_range(IntervalOf(end, UINT64_MAX));
  // What adjoins may have been recorded piece by piece.
  const std::uint64_t first = at == past ? end : std::min(at->first.lower(), end);
  changes.push_back({kPieces, shm::LedgerKey({inode_, first}), std::nullopt, shm::LedgerKey({inode_, UINT64_MAX})});
  if (first < end) {
    record::Piece kept;
    kept.set_first(static_cast<std::uint64_t>(static_cast<std::int64_t>(first) + at->second));
    kept.set_pages(end - first);
    changes.push_back({kPieces, shm::LedgerKey({inode_, first}), kept.SerializeAsString()});
  }
  files_.ledger_->ApplyOrDefer(std::move(changes)).IgnoreError();
}

void RamNode::Shrink(std::uint64_t size) {
  std::vector<Piece> cut;
  {
    shm::MutexLock lock(mutex_);
    cut = PiecesIn(PagesOf(size), UINT64_MAX);
    RecordCut(size);
    shm::FailAt(shm::Point::kRamCut);
    pages_.erase(IntervalOf(PagesOf(size), UINT64_MAX));
    size_ = size;
    ZeroTail();
  }
  for (const Piece& piece : cut) {
    files_.held_.Drop(piece.run);
    GiveBack(piece.run.pages);
  }
}

absl::StatusOr<nommu::PoolAddress> RamNode::Hold(std::uint64_t first, std::uint64_t pages) const {
  shm::MutexLock lock(mutex_);
  const std::uint64_t last = PagesOf(size_);
  if (first < last && pages <= last - first) {
    const std::vector<Piece> pieces = PiecesIn(first, first + pages);
    if (pieces.size() == 1 && pieces[0].run.pages == pages) {
      files_.held_.Hold(pieces[0].run);
      return pieces[0].run.first * kPageSize;
    }
  }
  return Refuse(ENOSYS, "S10", "the ram file's pages are not there, or not contiguous");
}

void RamNode::Release(nommu::PoolAddress start, std::uint64_t length) const {
  files_.held_.Drop(shm::Run{start / kPageSize, length / kPageSize});
}

void RamNode::HoldAgain(nommu::PoolAddress start, std::uint64_t length) const {
  files_.held_.Hold(shm::Run{start / kPageSize, length / kPageSize});
}

RamFile::RamFile(std::shared_ptr<RamNode> node, int open_flags)
    : node_(std::move(node)), append_((open_flags & O_APPEND) != 0) {
  id = {.device = kRamDevice, .inode = node_->inode()};
  if ((open_flags & O_PATH) != 0) {
    kind = Kind::kNotOpen;
    return;
  }
  capabilities = nommu::kMapCopy | nommu::kMapDirect | nommu::kReadMap | nommu::kWriteMap | nommu::kExecMap;
  const int mode = open_flags & O_ACCMODE;
  readable = mode != O_WRONLY;
  writable = mode != O_RDONLY;
}

record::File RamFile::Record() const {
  record::File file;
  file.set_kind(record::File::KIND_RAM);
  file.set_device(id.device);
  file.set_inode(id.inode);
  const int mode = readable && writable ? O_RDWR : writable ? O_WRONLY : O_RDONLY;
  file.set_open_flags(
      static_cast<std::uint32_t>(mode | (append_ ? O_APPEND : 0) | (kind == Kind::kNotOpen ? O_PATH : 0)));
  return file;
}

absl::StatusOr<std::size_t> RamFile::Read(std::uint64_t offset, std::span<std::byte> into) const {
  if (offset > kMaxSize || into.size() > kMaxSize - offset) {
    return Refuse(EINVAL, "S5", "the range goes past the largest possible file");
  }
  return node_->Read(offset, into);
}

absl::StatusOr<nommu::PoolAddress> RamFile::GetUnmappedArea(const nommu::MapRequest& request) const {
  return node_->Hold(request.offset / kPageSize, request.length / kPageSize);
}

absl::StatusOr<std::shared_ptr<RamNode>> RamFiles::Make(const std::string& name, const Credentials& owner, mode_t mode,
                                                        bool unlinked) {
  auto node = std::make_shared<RamNode>(*this, name, ++last_inode_, owner, mode, unlinked);
  if (absl::Status status = node->Create(); !status.ok()) return status;
  return node;
}

absl::Status RamFiles::Link(const std::string& name, const std::shared_ptr<RamNode>& node) {
  if (absl::Status status = CheckName(name); !status.ok()) return status;
  shm::MutexLock lock(mutex_);
  if (names_.contains(name)) return Refuse(EEXIST, "F", absl::StrCat(name, " exists: take another name"));
  if (absl::Status status = node->SetUnlinked(false); !status.ok()) return status;
  names_.emplace(name, node);
  return absl::OkStatus();
}

std::shared_ptr<RamNode> RamFiles::Restore(const std::string& name, std::uint64_t inode, const Credentials& owner,
                                           mode_t mode, bool unlinked) {
  auto node = std::make_shared<RamNode>(*this, name, inode, owner, mode);
  node->RestoreCharge();
  shm::MutexLock lock(mutex_);
  last_inode_ = std::max(last_inode_, inode);
  if (!unlinked) names_.emplace(name, node);
  return node;
}

absl::StatusOr<std::shared_ptr<RamFile>> RamFiles::Open(const std::string& name, int flags, mode_t mode,
                                                        const Credentials& who) {
  if (absl::Status status = CheckName(name); !status.ok()) return status;
  if ((flags & O_ACCMODE) == O_ACCMODE) return Refuse(EINVAL, "F", "give one of O_RDONLY, O_WRONLY and O_RDWR");
  if ((flags & O_DIRECTORY) != 0) return Refuse(ENOTDIR, "F", "there are no directories among ram files");
  shm::MutexLock lock(mutex_);
  if (const auto found = names_.find(name); found != names_.end()) {
    const RamNode& node = *found->second;
    if ((flags & O_CREAT) != 0 && (flags & O_EXCL) != 0) {
      return Refuse(EEXIST, "F", absl::StrCat(name, " exists: leave O_EXCL out, or take another name"));
    }
    const int access = flags & O_ACCMODE;
    unsigned wanted = access == O_RDONLY ? kRead : access == O_WRONLY ? kWrite : kRead | kWrite;
    if ((flags & O_TRUNC) != 0) wanted |= kWrite;
    if ((flags & O_PATH) == 0 && !MayAccess(who, node.uid(), node.gid(), node.mode(), wanted)) {
      return Refuse(EACCES, "F", absl::StrCat("the permission bits of ", name, " do not allow it to user ", who.uid));
    }
    return std::make_shared<RamFile>(found->second, flags);
  }
  if ((flags & O_CREAT) == 0) return NoSuchFile(name);
  const auto node = Make(name, who, mode, /*unlinked=*/false);
  if (!node.ok()) return node.status();
  names_.emplace(name, *node);
  return std::make_shared<RamFile>(*node, flags);
}

absl::StatusOr<std::shared_ptr<RamNode>> RamFiles::MakeUnnamed(const std::string& shown, const Credentials& owner,
                                                               mode_t mode) {
  shm::MutexLock lock(mutex_);
  // At once, so that nobody finds it by a name if the daemon is killed.
  return Make(shown, owner, mode, /*unlinked=*/true);
}

absl::Status RamFiles::Unlink(const std::string& name, const Credentials& who) {
  std::shared_ptr<RamNode> node;  // goes after the lock
  shm::MutexLock lock(mutex_);
  const auto found = names_.find(name);
  if (found == names_.end()) return NoSuchFile(name);
  if (!who.privileged() && who.uid != found->second->uid()) {
    return Refuse(EPERM, "F",
                  absl::StrCat(name, " belongs to user ", found->second->uid(), ", who alone may unlink it"));
  }
  if (absl::Status status = found->second->SetUnlinked(true); !status.ok()) return status;
  node = std::move(found->second);
  names_.erase(found);
  return absl::OkStatus();
}

absl::StatusOr<FileStat> RamFiles::Stat(const std::string& name) const {
  shm::MutexLock lock(mutex_);
  const auto found = names_.find(name);
  if (found == names_.end()) return NoSuchFile(name);
  return found->second->Stat();
}

std::vector<FileStat> RamFiles::List(const std::string& prefix, const std::string& after, std::size_t most) const {
  std::vector<FileStat> listed;
  shm::MutexLock lock(mutex_);
  for (auto at = after.empty() ? names_.lower_bound(prefix) : names_.upper_bound(after);
       at != names_.end() && listed.size() < most && absl::StartsWith(at->first, prefix); ++at) {
    listed.push_back(at->second->Stat());
  }
  return listed;
}

}  // namespace mapbroker::backing
