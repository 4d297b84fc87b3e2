#include "shm_backend/ledger.h"

#include <endian.h>
#include <lmdb.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <iterator>

#include "absl/strings/str_cat.h"

namespace mapbroker::shm {
namespace {

// Bytes of address space that the file may come to take; it is as large as what it holds.
constexpr std::size_t kMaxSize = std::size_t{1} << 40;

absl::Status Failed(const char* what, int error) {
  const std::string text = absl::StrCat("ledger: ", what, ": ", mdb_strerror(error));
  switch (error) {
    case ENOSPC:
    case EIO:  // a short write: LMDB does not ask why
    case ENOMEM:
    case MDB_MAP_FULL:
      return absl::ResourceExhaustedError(text);
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
  MDB_txn* transaction = nullptr;
  if (const int error = mdb_txn_begin(environment, nullptr, flags, &transaction)) return Failed("begin", error);
  return Transaction(transaction);
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
Ledger::~Ledger() = default;

absl::StatusOr<std::unique_ptr<Ledger>> Ledger::Open(const std::string& path, unsigned tables) {
  std::unique_ptr<Ledger> ledger(new Ledger);
  MDB_env*& env = ledger->environment_->env;
  if (const int error = mdb_env_create(&env)) return Failed("create", error);
  mdb_env_set_mapsize(env, kMaxSize);
  mdb_env_set_maxdbs(env, tables);
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
  for (unsigned table = 0; table < tables; ++table) {
    MDB_dbi opened;
    if (const int error = mdb_dbi_open(transaction->get(), std::to_string(table).c_str(), MDB_CREATE, &opened)) {
      return Failed("table", error);
    }
    ledger->environment_->tables.push_back(opened);
  }
  if (const int error = mdb_txn_commit(transaction->release())) return Failed("commit", error);
  return ledger;
}

void Ledger::Remove(const std::string& path) { unlink(path.c_str()); }

absl::Status Ledger::Apply(std::span<const Change> changes) {
  if (changes.empty()) return absl::OkStatus();
  MutexLock lock(mutex_);
  return ApplyAll(changes);
}

absl::Status Ledger::ApplyOrDefer(std::vector<Change> changes) {
  if (changes.empty()) return absl::OkStatus();
  MutexLock lock(mutex_);
  const absl::Status status = ApplyAll(changes);
  if (status.ok()) return status;
  deferred_.insert(deferred_.end(), std::make_move_iterator(changes.begin()), std::make_move_iterator(changes.end()));
  return status;
}

void Ledger::Seal() {
  MutexLock lock(mutex_);
  sealed_ = true;
}

absl::Status Ledger::ApplyAll(std::span<const Change> changes) {
  if (sealed_) return absl::OkStatus();
  absl::StatusOr<Transaction> transaction = Begin(environment_->env, 0);
  if (!transaction.ok()) return transaction.status();
  for (const std::span<const Change> part : {std::span<const Change>(deferred_), changes}) {
    for (const Change& change : part) {
      if (!change.last.empty()) {
        if (const int error = DeleteRange(transaction->get(), environment_->tables[change.table], change)) {
          return Failed("write", error);
        }
        continue;
      }
      MDB_val key = ValueOf(change.key);
      MDB_val value = ValueOf(change.value ? *change.value : std::string_view());
      const MDB_dbi table = environment_->tables[change.table];
      const int error = change.value ? mdb_put(transaction->get(), table, &key, &value, 0)
                                     : mdb_del(transaction->get(), table, &key, nullptr);
      if (error != 0 && (change.value || error != MDB_NOTFOUND)) return Failed("write", error);
    }
  }
  if (const int error = mdb_txn_commit(transaction->release())) return Failed("commit", error);
  deferred_.clear();
  return absl::OkStatus();
}

std::optional<std::string> Ledger::Get(unsigned table, const std::string& wanted) const {
  MutexLock lock(mutex_);
  const absl::StatusOr<Transaction> transaction = Begin(environment_->env, MDB_RDONLY);
  if (!transaction.ok()) return std::nullopt;
  MDB_val key = ValueOf(wanted), value{};
  if (mdb_get(transaction->get(), environment_->tables[table], &key, &value) != 0) return std::nullopt;
  return std::string(BytesOf(value));
}

absl::Status Ledger::ForEach(
    unsigned table, const std::function<absl::Status(std::string_view key, std::string_view value)>& record) const {
  MutexLock lock(mutex_);
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
