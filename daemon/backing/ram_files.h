// D2, F: ram files, files whose contents are pages of the pool. Their names are "ram:/..." and belong to the daemon.
#pragma once

#include <boost/icl/interval_map.hpp>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/container/btree_map.h"
#include "absl/status/statusor.h"
#include "daemon/account.h"
#include "daemon/backing/backing.h"
#include "daemon/credentials.h"
#include "shm_backend/held_pages.h"
#include "shm_backend/ledger.h"
#include "shm_backend/mutex.h"
#include "shm_backend/page_pool.h"

namespace mapbroker::backing {

inline constexpr char kRamScheme[] = "ram:";

// st_dev of ram files: a number that no file of the host has, since Linux numbers devices with 12 bits of major.
inline constexpr std::uint64_t kRamDevice = std::uint64_t{1} << 44;

// Bytes of a name, "ram:" included; as long as a path may be.
inline constexpr std::size_t kMaxRamName = 4095;

class RamFiles;

// A file, open or not. Thread-safe. Its memory goes when the last descriptor and mapping do and it has no name (F6).
class RamNode {
 public:
  RamNode(RamFiles& files, std::string name, std::uint64_t inode, const Credentials& owner, mode_t mode,
          bool unlinked = false);
  ~RamNode();
  RamNode(const RamNode&) = delete;
  RamNode& operator=(const RamNode&) = delete;

  std::uint64_t inode() const { return inode_; }
  uid_t uid() const { return uid_; }
  gid_t gid() const { return gid_; }
  mode_t mode() const { return mode_; }
  std::string Name() const;
  std::uint64_t Size() const;
  FileStat Stat() const;
  // It has lost its name, or got one. ENOSPC if that cannot be recorded.
  absl::Status SetUnlinked(bool unlinked);

  // How many bytes were read: fewer than asked for only at the end of the file. Holes read as zeros.
  std::size_t Read(std::uint64_t offset, std::span<std::byte> into) const;
  // Writes all of it, at the end where `append` says so. EFBIG, ENOMEM; nothing is changed then.
  absl::Status Write(std::uint64_t offset, bool append, std::span<const std::byte> from);
  // F1: a file of size 0 gets one run. EFBIG, ENOMEM. F2: a larger size makes a hole. REQUIRES: `size` is not less than
  // the file's, unless nothing else changes the file (Shrink).
  absl::Status Grow(std::uint64_t size);
  // Charges its owner for its being there and records it. ENOMEM, ENOSPC.
  absl::Status Create();
  // Makes again what was recorded, of a file that has nothing yet; the pages are held from now on.
  void RestorePiece(std::uint64_t first, shm::Run run);
  void RestoreSize(std::uint64_t size, bool unlinked);
  // After them: the rest of the last page holds zeros, also if a daemon was killed before it had zeroed it.
  void CleanTail();
  void RestoreCharge() { existence_ = Charge::Add(payer_, Resource::kBytes, nommu::kPageSize); }

  // F5: gives back the pages past the new size and zeroes the rest of the last. Whoever holds pages keeps them.
  void Shrink(std::uint64_t size);

  // F1, F3: where `pages` pages from `first` lie if they are there and contiguous; they are held until Release.
  absl::StatusOr<nommu::PoolAddress> Hold(std::uint64_t first, std::uint64_t pages) const;
  void Release(nommu::PoolAddress start, std::uint64_t length) const;
  // What was held in a daemon before is held again.
  void HoldAgain(nommu::PoolAddress start, std::uint64_t length) const;

 private:
  // File page to (pool page - file page): what is contiguous in both is one entry.
  using Pages = boost::icl::interval_map<std::uint64_t, std::int64_t, boost::icl::partial_enricher>;
  struct Piece {
    std::uint64_t first = 0;  // file page
    shm::Run run;
    friend bool operator==(const Piece&, const Piece&) = default;
  };

  std::vector<Piece> PiecesIn(std::uint64_t first, std::uint64_t end) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::vector<Piece> GapsIn(std::uint64_t first, std::uint64_t end) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Add(const Piece& piece) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status AllocateGaps(std::vector<Piece>& gaps) const;
  void FreePieces(const std::vector<Piece>& pieces) const;
  absl::Status Pay(std::uint64_t pages) const;
  void GiveBack(std::uint64_t pages) const;
  absl::Status Record(std::uint64_t size, const std::vector<Piece>& added) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ZeroTail() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void RecordCut(std::uint64_t size) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  shm::Ledger::Change RecordOf(std::uint64_t size) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  RamFiles& files_;
  const std::string name_;
  const std::uint64_t inode_;
  const uid_t uid_;
  const gid_t gid_;
  const mode_t mode_;
  Account* const payer_;  // the owner's, for all pages that are the file's; null where nobody counts
  Charge existence_;      // a page, so that empty files are not free
  mutable shm::Mutex mutex_;
  bool unlinked_ ABSL_GUARDED_BY(mutex_);
  std::uint64_t size_ ABSL_GUARDED_BY(mutex_) = 0;
  Pages pages_ ABSL_GUARDED_BY(mutex_);
};

// One open file description of a ram file. Thread-safe.
class RamFile : public Backing {
 public:
  // `open_flags`: O_ACCMODE and O_APPEND of open(2).
  RamFile(std::shared_ptr<RamNode> node, int open_flags);

  RamNode& node() const { return *node_; }
  bool Restored(nommu::PoolAddress start, std::uint64_t length) const override {
    node_->HoldAgain(start, length);
    return true;
  }

  absl::StatusOr<std::uint64_t> Size() const override { return node_->Size(); }
  absl::StatusOr<std::size_t> Read(std::uint64_t offset, std::span<std::byte> into) const override;
  std::string Path() const override { return node_->Name(); }
  absl::StatusOr<nommu::PoolAddress> GetUnmappedArea(const nommu::MapRequest& request) const override;
  void Close(nommu::PoolAddress start, std::uint64_t length, bool last) const override {
    if (last) node_->Release(start, length);
  }
  absl::Status Write(std::uint64_t offset, std::span<const std::byte> from) const override {
    return node_->Write(offset, append_, from);
  }
  absl::StatusOr<FileStat> Stat() const override { return node_->Stat(); }
  record::File Record() const override;

 private:
  const std::shared_ptr<RamNode> node_;
  const bool append_;
};

// All ram files, by name. Thread-safe; outlives every node. There are no directories: a name may hold slashes, and
// listing takes a prefix. As in a directory with the sticky bit everybody may create, and only the owner may unlink.
class RamFiles {
 public:
  // `pool` is where this process has the pool's bytes.
  // `ledger`: where they are recorded, null for nowhere; outlives them too. `accounts`: where their owners are charged.
  RamFiles(shm::PagePool& pages, std::span<std::byte> pool, shm::Ledger* ledger = nullptr, Accounts* accounts = nullptr)
      : pages_(pages), pool_(pool), ledger_(ledger), accounts_(accounts), held_(pages) {}

  // open(2): O_ACCMODE, O_CREAT, O_EXCL, O_APPEND and O_PATH; O_TRUNC is the caller's to carry out (F4). ENOENT,
  // EEXIST, EACCES, EINVAL, ENAMETOOLONG, ENOTDIR (O_DIRECTORY).
  absl::StatusOr<std::shared_ptr<RamFile>> Open(const std::string& name, int flags, mode_t mode,
                                                const Credentials& who);
  // A file that has no name yet; `shown` is what listings say.
  absl::StatusOr<std::shared_ptr<RamNode>> MakeUnnamed(const std::string& shown, const Credentials& owner, mode_t mode);
  // Gives it its name, when it is complete. EEXIST, ENOSPC and what Open says of names.
  absl::Status Link(const std::string& name, const std::shared_ptr<RamNode>& node);
  // Makes a file again that was recorded; one that is unlinked goes with the last who has it.
  std::shared_ptr<RamNode> Restore(const std::string& name, std::uint64_t inode, const Credentials& owner, mode_t mode,
                                   bool unlinked);
  // ENOENT, EPERM.
  absl::Status Unlink(const std::string& name, const Credentials& who);
  absl::StatusOr<FileStat> Stat(const std::string& name) const;
  // At most `most` files whose name begins with `prefix` and comes after `after`, by name.
  std::vector<FileStat> List(const std::string& prefix, const std::string& after, std::size_t most) const;

 private:
  friend class RamNode;
  absl::StatusOr<std::shared_ptr<RamNode>> Make(const std::string& name, const Credentials& owner, mode_t mode,
                                                bool unlinked) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  shm::PagePool& pages_;
  const std::span<std::byte> pool_;
  shm::Ledger* const ledger_;
  Accounts* const accounts_;
  shm::HeldPages held_;
  mutable shm::Mutex mutex_;
  std::uint64_t last_inode_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::btree_map<std::string, std::shared_ptr<RamNode>> names_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace mapbroker::backing
