// Durable state: tables of records in LMDB that outlive the process, however it ends.
//
// A change is a transaction: after a crash at any instant either all of it is there or nothing. Records are meant to
// die with the machine, so nothing waits for a disk. Changes go into a log first (write_ahead_log.h), which costs a
// copy, and from there into LMDB by a thread of the ledger's own, many in one transaction.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "shm_backend/mutex.h"
#include "shm_backend/write_ahead_log.h"

namespace mapbroker::shm {

// Thread-safe.
class Ledger {
 public:
  // What becomes of one record.
  struct Change {
    unsigned table = 0;
    std::string key;
    std::optional<std::string> value = {};  // nullopt: it is deleted, if it is there
    std::string last = {};                  // not empty: all records from `key` to this key are deleted
  };

  // Opens the file, and makes it if it is missing. `tables`: how many there are. DataLoss: the file is no ledger or is
  // damaged; else the failing call and its reason.
  static absl::StatusOr<std::unique_ptr<Ledger>> Open(const std::string& path, unsigned tables);
  // Removes the file and what LMDB keeps beside it.
  static void Remove(const std::string& path);

  ~Ledger();
  Ledger(const Ledger&) = delete;
  Ledger& operator=(const Ledger&) = delete;

  // All of the changes, in order, or none. What writing says, as ResourceExhausted (a full disk) or Internal.
  absl::Status Apply(std::span<const Change> changes);
  // For what has happened: applied now or, with the error that Apply has, before the next changes that can be.
  absl::Status ApplyOrDefer(std::vector<Change> changes);
  // From now on changes are dropped: the state that is recorded is for the next process.
  void Seal();

  // nullopt: there is none. Fails as Apply does, since what is read must be in LMDB first.
  absl::StatusOr<std::optional<std::string>> Get(unsigned table, const std::string& key) const;
  // Records in a table. Fails as Get does.
  absl::StatusOr<std::uint64_t> Count(unsigned table) const;

  struct Statistics {
    std::uint64_t records = 0;   // in LMDB
    std::uint64_t bytes = 0;     // of its file that are in use
    std::uint64_t waiting = 0;   // changes that are in the log and not in LMDB yet
    std::uint64_t deferred = 0;  // changes that are nowhere yet
    bool failing = false;        // LMDB could not be written the last time
  };
  // Waits for nothing but the ledger's own locks. Fails where LMDB cannot be read.
  absl::StatusOr<Statistics> GetStatistics() const;

  // Calls `record` for every record of a table in the order of its keys, until it fails. Not from within `record`.
  absl::Status ForEach(unsigned table,
                       const std::function<absl::Status(std::string_view key, std::string_view value)>& record) const;

 private:
  struct Environment;
  Ledger();
  absl::Status Append(std::vector<Change>& changes);
  bool Log(std::vector<Change>& changes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status Drain() const;
  absl::Status Write(std::span<const Change> changes, std::uint64_t last) const;
  absl::Status Recover();
  void Work();

  // In this order, and the first is held while LMDB writes; its own locks would lie in a file.
  mutable Mutex draining_;
  mutable Mutex mutex_;
  mutable CondVar changed_;
  mutable std::vector<Change> logged_ ABSL_GUARDED_BY(mutex_);        // in the log and not in LMDB yet
  std::deque<std::vector<Change>> deferred_ ABSL_GUARDED_BY(mutex_);  // nowhere yet; what belongs together is together
  mutable std::unique_ptr<WriteAheadLog> log_ ABSL_GUARDED_BY(mutex_);
  mutable bool other_half_is_clear_ ABSL_GUARDED_BY(mutex_) = true;
  mutable bool failing_ ABSL_GUARDED_BY(mutex_) = false;
  bool sealed_ ABSL_GUARDED_BY(mutex_) = false;
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  const std::unique_ptr<Environment> environment_;
  std::thread worker_;
};

// A key that sorts as the numbers do.
std::string LedgerKey(std::initializer_list<std::uint64_t> numbers);
// The numbers of a key; fewer than `count` if it is none of that many.
std::vector<std::uint64_t> LedgerNumbers(std::string_view key);

}  // namespace mapbroker::shm
