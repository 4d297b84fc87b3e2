#include "daemon/state.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "daemon/activation.h"
#include "daemon/process.h"
#include "daemon/record.pb.h"
#include "daemon/records.h"
#include "shm_backend/failure_point.h"

namespace mapbroker {
namespace {

constexpr char kLedgerName[] = "/ledger.mdb";
constexpr char kHeaderKey[] = "header";
constexpr char kMagic[] = "mapbroker";
constexpr std::uint32_t kVersion = 2;

// The pool in the hands of a process that had a session.
shm::UniqueFd PoolOf(pid_t pid, const shm::Segment::Identity& identity) {
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(absl::StrCat("/proc/", pid, "/fd"), error)) {
    struct stat stat;
    if (::stat(entry.path().c_str(), &stat) != 0 || stat.st_ino != identity.inode || stat.st_dev != identity.device) {
      continue;
    }
    shm::UniqueFd fd(open(entry.path().c_str(), O_RDWR | O_CLOEXEC));
    if (fd) return fd;
  }
  return {};
}

}  // namespace

absl::Status DoesNotFit(const std::string& why) {
  return absl::FailedPreconditionError(
      absl::StrCat(why, ": start the daemon as before, or with --reset to give up what the ledger holds"));
}

absl::StatusOr<State> State::Open(const std::string& runtime_dir, const Config& config, shm::UniqueFd stored) {
  State state;
  state.path_ = runtime_dir + kLedgerName;
  // Until it is known that nobody could miss it.
  state.left_ = true;
  if (config.reset) shm::Ledger::Remove(state.path_);
  const auto open_ledger = [&] { return shm::Ledger::Open(state.path_, kTables); };
  auto ledger = open_ledger();
  if (ledger.status().code() == absl::StatusCode::kDataLoss) {
    return DoesNotFit(
        absl::StrCat(state.path_, " is no ledger or is damaged (", std::string(ledger.status().message()), ")"));
  }
  if (!ledger.ok()) return ledger.status();
  state.ledger_ = *std::move(ledger);
  absl::Status status = state.TakeOver(config, std::move(stored));
  if (absl::IsNotFound(status)) {
    // Nothing was recorded that anybody could miss.
    state.left_ = false;
    state.ledger_.reset();
    shm::Ledger::Remove(state.path_);
    ledger = open_ledger();
    if (!ledger.ok()) return ledger.status();
    state.ledger_ = *std::move(ledger);
    status = state.MakeNew(config);
  } else if (!status.ok()) {
    state.Leave();
  }
  if (!status.ok()) return status;
  // What came out of the store is still in it, and must not leave it for a moment: this process may be killed now.
  if (!state.stored_) StorePool(state.segment_->fd());
  return state;
}

// NotFound: there is nothing to take over.
absl::Status State::TakeOver(const Config& config, shm::UniqueFd stored) {
  record::Header header;
  bool found = false;
  absl::Status status = ledger_->ForEach(kHeader, [&](std::string_view, std::string_view value) -> absl::Status {
    found = header.ParseFromArray(value.data(), static_cast<int>(value.size())) && header.magic() == kMagic;
    return absl::OkStatus();
  });
  if (!status.ok()) return status;
  const absl::StatusOr<std::uint64_t> mappings = ledger_->Count(kMappings), files = ledger_->Count(kRamNodes);
  if (!mappings.ok()) return mappings.status();
  if (!files.ok()) return files.status();
  std::uint64_t devices = 0;  // with memory of their own
  status = ledger_->ForEach(kDevices, [&](std::string_view, std::string_view value) {
    record::Device device;
    if (device.ParseFromArray(value.data(), static_cast<int>(value.size())) && device.pages() > 0) ++devices;
    return absl::OkStatus();
  });
  if (!status.ok()) return status;
  const bool holds_something = *mappings > 0 || *files > 0 || devices > 0;
  if (!found) {
    return holds_something ? DoesNotFit(absl::StrCat(path_, " is another program's")) : absl::NotFoundError("new");
  }
  if (header.version() != kVersion) {
    return DoesNotFit(absl::StrCat(path_, " has version ", header.version(), ", this daemon writes ", kVersion));
  }
  if (header.profile() != config.profile->name) {
    return DoesNotFit(absl::StrCat("the ledger is of the profile ", header.profile()));
  }
  const shm::Segment::Identity identity{header.pool_device(), header.pool_inode(), header.pool_size()};
  if (identity.size != config.pool.size && holds_something) {
    return DoesNotFit(absl::StrCat("the ledger is of a pool of ", identity.size, " bytes"));
  }
  const bool in_store = static_cast<bool>(stored);
  shm::UniqueFd pool = std::move(stored);
  if (!pool && config.pool.kind == shm::SegmentSpec::Kind::kMemfd) {
    status = ledger_->ForEach(kSessions, [&](std::string_view, std::string_view value) -> absl::Status {
      record::Session session;
      if (!pool && session.ParseFromArray(value.data(), static_cast<int>(value.size())) &&
          StartTimeOf(session.pid()) == session.start_time()) {
        pool = PoolOf(session.pid(), identity);
      }
      return absl::OkStatus();
    });
    if (!status.ok()) return status;
  }
  auto segment = shm::Segment::Adopt(config.pool, identity, std::move(pool));
  if (absl::IsNotFound(segment.status())) {
    if (!holds_something) return segment.status();
    return DoesNotFit(absl::StrCat("the pool that the ledger is of has gone, and with it ", *mappings, " mappings, ",
                                   *files, " ram files and ", devices, " devices"));
  }
  if (!segment.ok()) return segment.status();
  segment_ = *std::move(segment);
  restored_ = true;
  left_ = false;
  since_ = header.since();
  stored_ = in_store;
  return absl::OkStatus();
}

absl::Status State::MakeNew(const Config& config) {
  auto segment = shm::Segment::Create(config.pool);
  if (!segment.ok()) return segment.status();
  segment_ = *std::move(segment);
  const shm::Segment::Identity identity = segment_->identity();
  record::Header header;
  header.set_magic(kMagic);
  header.set_version(kVersion);
  header.set_pool_device(identity.device);
  header.set_pool_inode(identity.inode);
  header.set_pool_size(identity.size);
  header.set_profile(config.profile->name);
  header.set_since(since_ = absl::ToUnixMillis(absl::Now()));
  const shm::Ledger::Change change{kHeader, kHeaderKey, header.SerializeAsString()};
  return ledger_->Apply({&change, 1});
}

void State::Leave() {
  left_ = true;
  if (ledger_ != nullptr) ledger_->Seal();
  if (segment_ != nullptr) segment_->Leave();
}

State::~State() {
  if (left_ || path_.empty()) return;
  ForgetStoredPool();
  ledger_.reset();
  shm::FailAt(shm::Point::kGiveUp);
  shm::Ledger::Remove(path_);
}

}  // namespace mapbroker
