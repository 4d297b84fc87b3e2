#include "shm_backend/ledger.h"

#include <endian.h>
#include <lmdb.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "shm_backend/failure_point.h"

namespace mapbroker::shm {
namespace {

// Bytes of address space that the file may come to take; it is as large as what it holds.
constexpr std::size_t kMaxSize = std::size_t{1} << 40;

// In the ledger's own table: the number of the log's last entry that LMDB has.
constexpr char kLastKey[] = "last";

// From the first change that LMDB does not have to when it gets it, with all that came meanwhile.
constexpr std::chrono::milliseconds kBatch(2);

// After a failure, such as a full disk.
constexpr std::chrono::milliseconds kRetry(100);

std::string LogOf(const std::string& path) { return path + "-log"; }

absl::Status Failed(const char* what, int error) {
  const std::string text = absl::StrCat("ledger: ", what, ": ", mdb_strerror(error));
  switch (error) {
    case ENOSPC:
    case EIO:  // a short write: LMDB does not ask why
    case ENOMEM:
    case MDB_MAP_FULL:
      return absl::ResourceExhaustedError(absl::StrCat(text, ": make room in its directory"));
    case MDB_INVALID:
    case MDB_VERSION_MISMATCH:
    case MDB_CORRUPTED:
    case MDB_PAGE_NOTFOUND:
    case MDB_INCOMPATIBLE:
      return absl::DataLossError(text);
    default:
      return absl::InternalError(text);
  }
}

MDB_val ValueOf(std::string_view bytes) { return {bytes.size(), const_cast<char*>(bytes.data())}; }
std::string_view BytesOf(const MDB_val& value) { return {static_cast<const char*>(value.mv_data), value.mv_size}; }

struct Aborter {
  void operator()(MDB_txn* transaction) const { mdb_txn_abort(transaction); }
};
using Transaction = std::unique_ptr<MDB_txn, Aborter>;

absl::StatusOr<Transaction> Begin(MDB_env* environment, unsigned flags) {
  if (const int error = FailAt((flags & MDB_RDONLY) == 0 ? Point::kLedgerBegin : Point::kLedgerRead)) {
    return Failed("begin", error);
  }
  MDB_txn* transaction = nullptr;
  if (const int error = mdb_txn_begin(environment, nullptr, flags, &transaction)) return Failed("begin", error);
  return Transaction(transaction);
}

// Bytes of a string with their number before them.
void EncodeBytes(std::string_view bytes, std::string& into) {
  const std::uint32_t size = static_cast<std::uint32_t>(bytes.size());
  into.append(reinterpret_cast<const char*>(&size), sizeof(size)).append(bytes);
}

bool DecodeBytes(std::string_view& from, std::string& bytes) {
  std::uint32_t size;
  if (from.size() < sizeof(size)) return false;
  std::memcpy(&size, from.data(), sizeof(size));
  from.remove_prefix(sizeof(size));
  if (from.size() < size) return false;
  bytes.assign(from.substr(0, size));
  from.remove_prefix(size);
  return true;
}

void Encode(const Ledger::Change& change, std::string& into) {
  into.push_back(static_cast<char>(change.table));
  into.push_back(change.value ? 1 : 0);
  EncodeBytes(change.key, into);
  EncodeBytes(change.value ? *change.value : change.last, into);
}

// Bytes that Encode makes of them.
std::size_t SizeOf(std::span<const Ledger::Change> changes) {
  std::size_t size = 0;
  for (const Ledger::Change& change : changes) {
    size += 2 + 2 * sizeof(std::uint32_t) + change.key.size() + (change.value ? *change.value : change.last).size();
  }
  return size;
}

bool Decode(std::string_view from, std::vector<Ledger::Change>& changes) {
  while (from.size() >= 2) {
    Ledger::Change change{.table = static_cast<unsigned char>(from[0]), .key = {}};
    const bool has_value = from[1] != 0;
    from.remove_prefix(2);
    std::string second;
    if (!DecodeBytes(from, change.key) || !DecodeBytes(from, second)) return false;
    if (has_value) {
      change.value = std::move(second);
    } else {
      change.last = std::move(second);
    }
    changes.push_back(std::move(change));
  }
  return from.empty();
}

int DeleteRange(MDB_txn* transaction, MDB_dbi table, const Ledger::Change& range) {
  MDB_cursor* cursor = nullptr;
  if (const int error = mdb_cursor_open(transaction, table, &cursor)) return error;
  MDB_val key = ValueOf(range.key);
  int error = mdb_cursor_get(cursor, &key, nullptr, MDB_SET_RANGE);
  while (error == 0 && BytesOf(key) <= range.last) {
    error = mdb_cursor_del(cursor, 0);
    if (error == 0) error = mdb_cursor_get(cursor, &key, nullptr, MDB_GET_CURRENT);
  }
  mdb_cursor_close(cursor);
  // After the last one there is none to be the current one.
  return error == MDB_NOTFOUND || error == EINVAL ? 0 : error;
}

}  // namespace

struct Ledger::Environment {
  ~Environment() { mdb_env_close(env); }
  MDB_env* env = nullptr;
  std::vector<MDB_dbi> tables;
};

Ledger::Ledger() : environment_(std::make_unique<Environment>()) {}

absl::StatusOr<std::unique_ptr<Ledger>> Ledger::Open(const std::string& path, unsigned tables) {
  std::unique_ptr<Ledger> ledger(new Ledger);
  if (const int error = FailAt(Point::kLedgerOpen)) return Failed(path.c_str(), error);
  MDB_env*& env = ledger->environment_->env;
  if (const int error = mdb_env_create(&env)) return Failed("create", error);
  mdb_env_set_mapsize(env, kMaxSize);
  mdb_env_set_maxdbs(env, tables + 1);
  // Nobody else opens it, since the runtime directory is held; and what the kernel has been given outlives us.
  constexpr unsigned kFlags = MDB_NOSUBDIR | MDB_NOSYNC | MDB_NOLOCK | MDB_NOTLS | MDB_NORDAHEAD;
  if (const int error = mdb_env_open(env, path.c_str(), kFlags, 0600)) return Failed(path.c_str(), error);
  // A file that was cut short would be read past its end.
  MDB_envinfo info{};
  MDB_stat stat{};
  mdb_env_info(env, &info);
  mdb_env_stat(env, &stat);
  struct stat file;
  if (::stat(path.c_str(), &file) != 0) return Failed(path.c_str(), errno);
  if (static_cast<std::uint64_t>(file.st_size) < (info.me_last_pgno + 1) * stat.ms_psize) {
    return Failed(path.c_str(), MDB_CORRUPTED);
  }
  absl::StatusOr<Transaction> transaction = Begin(env, 0);
  if (!transaction.ok()) return transaction.status();
  // One more, of the ledger's own.
  for (unsigned table = 0; table <= tables; ++table) {
    MDB_dbi opened;
    if (const int error = mdb_dbi_open(transaction->get(), std::to_string(table).c_str(), MDB_CREATE, &opened)) {
      return Failed("table", error);
    }
    ledger->environment_->tables.push_back(opened);
  }
  if (const int error = mdb_txn_commit(transaction->release())) return Failed("commit", error);
  auto log = WriteAheadLog::Open(LogOf(path));
  if (!log.ok()) return log.status();
  {
    MutexLock lock(ledger->mutex_);
    ledger->log_ = *std::move(log);
  }
  if (absl::Status status = ledger->Recover(); !status.ok()) return status;
  ledger->worker_ = std::thread([at = ledger.get()] { at->Work(); });
  return ledger;
}

Ledger::~Ledger() {
  {
    MutexLock lock(mutex_);
    stop_ = true;
    changed_.NotifyAll();
  }
  if (!worker_.joinable()) return;
  worker_.join();
  Drain().IgnoreError();  // what is left in the log is for the next to recover
}

void Ledger::Remove(const std::string& path) {
  unlink(path.c_str());
  unlink(LogOf(path).c_str());
}

absl::Status Ledger::Apply(std::span<const Change> changes) {
  std::vector<Change> copies(changes.begin(), changes.end());
  return Append(copies);
}

absl::Status Ledger::ApplyOrDefer(std::vector<Change> changes) {
  const absl::Status status = Append(changes);
  if (status.ok()) return status;
  const bool fits = SizeOf(changes) <= WriteAheadLog::kMaxEntry;
  MutexLock lock(mutex_);
  if (fits) {
    deferred_.push_back(std::move(changes));
  } else {
    for (Change& change : changes) deferred_.push_back({std::move(change)});
  }
  return status;
}

void Ledger::Seal() {
  MutexLock lock(mutex_);
  sealed_ = true;
}

// Into the log, after what was deferred before; a full log is made room in first. Takes the changes if it succeeds.
absl::Status Ledger::Append(std::vector<Change>& changes) {
  if (changes.empty()) return absl::OkStatus();
  if (const int error = FailAt(Point::kLogAppend)) return Failed("append", error);
  for (;;) {
    {
      MutexLock lock(mutex_);
      if (sealed_) return absl::OkStatus();
      if (SizeOf(changes) > WriteAheadLog::kMaxEntry)
        return absl::ResourceExhaustedError("ledger: a change is larger than the log");
      while (!deferred_.empty() && Log(deferred_.front())) deferred_.pop_front();
      if (deferred_.empty() && Log(changes)) {
        FailAt(Point::kLogAppended);
        return absl::OkStatus();
      }
    }
    if (absl::Status status = Drain(); !status.ok()) return status;
  }
}

// One entry of the log. False: there is no room for it; else it takes the changes.
bool Ledger::Log(std::vector<Change>& changes) {
  std::string entry;
  for (const Change& change : changes) Encode(change, entry);
  if (!log_->Append(entry)) return false;
  if (logged_.empty()) changed_.NotifyAll();
  logged_.insert(logged_.end(), std::make_move_iterator(changes.begin()), std::make_move_iterator(changes.end()));
  return true;
}

// All of the log into LMDB, in one transaction.
absl::Status Ledger::Drain() const {
  MutexLock draining(draining_);
  std::vector<Change> changes;
  std::uint64_t last;
  {
    MutexLock lock(mutex_);
    if (logged_.empty()) return absl::OkStatus();
    changes = std::exchange(logged_, {});
    last = log_->last();
    // After a failure the other half is still needed.
    if (other_half_is_clear_) log_->Turn();
    other_half_is_clear_ = false;
  }
  FailAt(Point::kLogTurned);
  const absl::Status status = Write(changes, last);
  MutexLock lock(mutex_);
  failing_ = !status.ok();
  if (status.ok()) {
    // What came meanwhile is in the half that is appended to.
    logged_.empty() ? log_->Clear() : log_->ClearOther();
    other_half_is_clear_ = true;
    return status;
  }
  // They stay in the log, and what came meanwhile follows them.
  changes.insert(changes.end(), std::make_move_iterator(logged_.begin()), std::make_move_iterator(logged_.end()));
  logged_ = std::move(changes);
  return status;
}

absl::Status Ledger::Write(std::span<const Change> changes, std::uint64_t last) const {
  absl::StatusOr<Transaction> transaction = Begin(environment_->env, 0);
  if (!transaction.ok()) return transaction.status();
  if (const int error = FailAt(Point::kLedgerPut)) return Failed("write", error);
  const auto put = [&](MDB_dbi table, std::string_view of_key, std::string_view of_value) {
    MDB_val key = ValueOf(of_key), value = ValueOf(of_value);
    return mdb_put(transaction->get(), table, &key, &value, 0);
  };
  for (const Change& change : changes) {
    const MDB_dbi table = environment_->tables[change.table];
    int error;
    if (!change.last.empty()) {
      error = DeleteRange(transaction->get(), table, change);
    } else if (change.value) {
      error = put(table, change.key, *change.value);
    } else {
      MDB_val key = ValueOf(change.key);
      error = mdb_del(transaction->get(), table, &key, nullptr);
      if (error == MDB_NOTFOUND) error = 0;
    }
    if (error != 0) return Failed("write", error);
  }
  if (const int error = put(environment_->tables.back(), kLastKey, LedgerKey({last}))) return Failed("write", error);
  if (const int error = FailAt(Point::kLedgerCommit)) return Failed("commit", error);
  if (const int error = mdb_txn_commit(transaction->release())) return Failed("commit", error);
  FailAt(Point::kLedgerCommitted);
  return absl::OkStatus();
}

absl::Status Ledger::Recover() {
  std::uint64_t applied = 0;
  {
    const absl::StatusOr<Transaction> transaction = Begin(environment_->env, MDB_RDONLY);
    if (!transaction.ok()) return transaction.status();
    MDB_val key = ValueOf(kLastKey), value{};
    if (mdb_get(transaction->get(), environment_->tables.back(), &key, &value) == 0) {
      const std::vector<std::uint64_t> numbers = LedgerNumbers(BytesOf(value));
      if (numbers.size() == 1) applied = numbers[0];
    }
  }
  std::vector<Change> changes;
  bool readable = true;
  std::uint64_t last;
  {
    MutexLock lock(mutex_);
    log_->Recover(applied, [&](std::string_view entry) { readable = readable && Decode(entry, changes); });
    last = log_->last();
  }
  for (const Change& change : changes) readable = readable && change.table + 1 < environment_->tables.size();
  if (!readable) return absl::DataLossError("ledger: the log cannot be read");
  if (absl::Status status = Write(changes, last); !status.ok()) return status;
  MutexLock lock(mutex_);
  log_->Clear();
  return absl::OkStatus();
}

void Ledger::Work() {
  for (;;) {
    {
      MutexLock lock(mutex_);
      while (logged_.empty() && !stop_) changed_.Wait(mutex_);
      if (stop_) return;
    }
    // Nobody waits for this, so it is done for many at once.
    std::this_thread::sleep_for(kBatch);
    if (!Drain().ok()) std::this_thread::sleep_for(kRetry);
  }
}

absl::StatusOr<std::optional<std::string>> Ledger::Get(unsigned table, const std::string& wanted) const {
  if (absl::Status status = Drain(); !status.ok()) return status;
  MutexLock draining(draining_);
  const absl::StatusOr<Transaction> transaction = Begin(environment_->env, MDB_RDONLY);
  if (!transaction.ok()) return transaction.status();
  MDB_val key = ValueOf(wanted), value{};
  const int error = mdb_get(transaction->get(), environment_->tables[table], &key, &value);
  if (error == MDB_NOTFOUND) return std::nullopt;
  if (error != 0) return Failed("read", error);
  return std::string(BytesOf(value));
}

absl::StatusOr<std::uint64_t> Ledger::Count(unsigned table) const {
  if (absl::Status status = Drain(); !status.ok()) return status;
  MutexLock draining(draining_);
  const absl::StatusOr<Transaction> transaction = Begin(environment_->env, MDB_RDONLY);
  if (!transaction.ok()) return transaction.status();
  MDB_stat stat{};
  if (const int error = mdb_stat(transaction->get(), environment_->tables[table], &stat)) return Failed("read", error);
  return stat.ms_entries;
}

absl::StatusOr<Ledger::Statistics> Ledger::GetStatistics() const {
  Statistics statistics;
  MutexLock draining(draining_);
  {
    MutexLock lock(mutex_);
    statistics.waiting = logged_.size();
    statistics.deferred = deferred_.size();
    statistics.failing = failing_;
  }
  const absl::StatusOr<Transaction> transaction = Begin(environment_->env, MDB_RDONLY);
  if (!transaction.ok()) return transaction.status();
  // All tables but the ledger's own.
  for (std::size_t table = 0; table + 1 < environment_->tables.size(); ++table) {
    MDB_stat stat{};
    if (const int error = mdb_stat(transaction->get(), environment_->tables[table], &stat))
      return Failed("read", error);
    statistics.records += stat.ms_entries;
    statistics.bytes += (stat.ms_branch_pages + stat.ms_leaf_pages + stat.ms_overflow_pages) * stat.ms_psize;
  }
  return statistics;
}

absl::Status Ledger::ForEach(
    unsigned table, const std::function<absl::Status(std::string_view key, std::string_view value)>& record) const {
  if (absl::Status status = Drain(); !status.ok()) return status;
  MutexLock draining(draining_);
  const absl::StatusOr<Transaction> transaction = Begin(environment_->env, MDB_RDONLY);
  if (!transaction.ok()) return transaction.status();
  MDB_cursor* cursor = nullptr;
  if (const int error = mdb_cursor_open(transaction->get(), environment_->tables[table], &cursor)) {
    return Failed("read", error);
  }
  absl::Status status;
  MDB_val key{}, value{};
  int error = mdb_cursor_get(cursor, &key, &value, MDB_FIRST);
  for (; error == 0 && status.ok(); error = mdb_cursor_get(cursor, &key, &value, MDB_NEXT)) {
    status = record(BytesOf(key), BytesOf(value));
  }
  mdb_cursor_close(cursor);
  if (!status.ok() || error == 0 || error == MDB_NOTFOUND) return status;
  return Failed("read", error);
}

std::string LedgerKey(std::initializer_list<std::uint64_t> numbers) {
  std::string key;
  for (const std::uint64_t number : numbers) {
    const std::uint64_t big_endian = htobe64(number);
    key.append(reinterpret_cast<const char*>(&big_endian), sizeof(big_endian));
  }
  return key;
}

std::vector<std::uint64_t> LedgerNumbers(std::string_view key) {
  std::vector<std::uint64_t> numbers;
  for (; key.size() >= sizeof(std::uint64_t); key.remove_prefix(sizeof(std::uint64_t))) {
    std::uint64_t big_endian;
    std::memcpy(&big_endian, key.data(), sizeof(big_endian));
    numbers.push_back(be64toh(big_endian));
  }
  return numbers;
}

}  // namespace mapbroker::shm
