#include "client/src/session.h"

#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <random>
#include <thread>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "client/src/file.h"
#include "client/src/status.h"

namespace mapbroker {
namespace {

// Between two attempts to reach a daemon that was lost.
constexpr std::chrono::milliseconds kMaxDelay(500);

constexpr char kDefaultRuntimeDir[] = "/run/mapbroker";

std::string NewNonce() {
  std::random_device random;
  std::string nonce;
  for (int part = 0; part < 4; ++part) {
    const std::uint32_t number = random();
    nonce.append(reinterpret_cast<const char*>(&number), sizeof(number));
  }
  return nonce;
}

// Absolute, since the process may change its working directory before gRPC connects.
absl::StatusOr<std::string> RuntimeDirOf(const ConnectOptions& options) {
  std::string dir = options.runtime_dir;
  if (dir.empty()) {
    const char* named = getenv("MAPBROKER_RUNTIME_DIR");
    dir = named != nullptr && *named != '\0' ? named : kDefaultRuntimeDir;
  }
  char absolute[PATH_MAX];
  if (realpath(dir.c_str(), absolute) == nullptr) {
    const int error = errno;
    return NoDaemon(error, absl::StrCat("runtime directory ", dir, ": ", std::strerror(error),
                                        "; start mapbrokerd, or name its --runtime-dir"));
  }
  return std::string(absolute);
}

}  // namespace

PassedFile::~PassedFile() {
  // If the daemon is gone so is its duplicate.
  if (session_.epoch_ == epoch_) session_.handoff()->CloseFile(number_).IgnoreError();
}

absl::StatusOr<std::shared_ptr<Session>> Session::Open(const ConnectOptions& options) {
  const bool is_hex = std::all_of(options.token.begin(), options.token.end(), absl::ascii_isxdigit);
  if (!is_hex || options.token.size() % 2 != 0)
    return MakeStatus(EINVAL, "this is no session's token: it is hexadecimal");
  // gRPC shares descriptors and locks between a process and what is forked of it: a call in the child would take its
  // parent's events, so the first to use it is the only one.
  static const SpaceMark first_use;
  if (absl::Status status = first_use.Check(); !status.ok()) return status;
  const absl::StatusOr<std::string> dir = RuntimeDirOf(options);
  if (!dir.ok()) return dir.status();
  std::shared_ptr<Session> session(new Session);

  v1::Hello hello;
  hello.set_read_only(options.read_only);
  hello.set_token(absl::HexStringToBytes(options.token));
  hello.set_executed(options.executed);
  hello.set_nonce(NewNonce());
  const auto deadline = std::chrono::steady_clock::now() + options.reconnect_timeout;
  absl::StatusOr<std::unique_ptr<Handoff>> handoff;
  absl::StatusOr<v1::Welcome> welcome;
  for (bool said = false;;) {
    handoff = Handoff::Connect(*dir);
    if (!handoff.ok() && !said) return handoff.status();
    welcome = handoff.ok() ? (*handoff)->Hello(hello, session->pool_) : handoff.status();
    if (welcome.ok()) break;
    // Whether there is a session is not known, so it is asked for again, and none is left behind.
    said = said || handoff.ok();
    if (!absl::IsUnavailable(welcome.status()) || std::chrono::steady_clock::now() >= deadline) return welcome.status();
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  {
    shm::MutexLock lock(session->mutex_);
    session->handoff_ = *std::move(handoff);
  }
  session->welcome_ = *std::move(welcome);
  session->runtime_dir_ = *dir;
  session->read_only_ = options.read_only;
  session->reconnect_timeout_ = options.reconnect_timeout;
  session->stub_ = std::make_unique<RpcStub>(
      *dir, session->welcome_.token(), &session->epoch_,
      [at = session.get()](std::uint64_t seen) { return at->TakeUpAgain(seen); },
      [at = session.get()] { return at->handoff()->HasEnded(); });

  if (options.attach == Attach::kWholePool) {
    auto whole = Attachment::WholePool(session->pool_.get(), session->welcome_, !options.read_only);
    if (!whole.ok()) return whole.status();
    session->whole_pool_ = *std::move(whole);
  }
  return session;
}

Session::~Session() {
  whole_pool_.reset();
  const std::shared_ptr<Handoff> last = handoff();
  if (last == nullptr || !absl::IsUnavailable(last->Goodbye())) return;
  // It may be that the daemon was restarted and nothing was asked of it since.
  if (Reconnect(epoch_, std::chrono::milliseconds(0)).ok()) handoff()->Goodbye().IgnoreError();
}

std::shared_ptr<Handoff> Session::handoff() const {
  shm::MutexLock lock(mutex_);
  return handoff_;
}

absl::Status Session::Reconnect(std::uint64_t seen, std::chrono::milliseconds timeout) {
  shm::MutexLock lock(reconnecting_);
  // Another thread may have been faster.
  if (epoch_ != seen) return absl::OkStatus();
  if (handoff()->HasFarewell()) return NoDaemon(ECONNRESET, "the daemon was stopped; connect anew when there is one");
  // From the call that found out, so that those who come later do not each wait as long again.
  if (!lost_at_) lost_at_ = std::chrono::steady_clock::now();
  const auto deadline = *lost_at_ + timeout;
  std::minstd_rand random(std::random_device{}());
  for (std::chrono::milliseconds delay(10);; delay = std::min(2 * delay, kMaxDelay)) {
    const absl::Status status = TakeUp();
    if (status.ok()) {
      ++epoch_;
      lost_at_.reset();
      return absl::OkStatus();
    }
    if (!absl::IsUnavailable(status) || std::chrono::steady_clock::now() >= deadline) return status;
    // Of many clients of a daemon not all come back at once.
    std::this_thread::sleep_for(delay * (50 + random() % 50) / 100);
  }
}

void Session::CloseNumber(int number) {
  v1::CloseRequest close;
  close.set_fd(number);
  stub_->Close(close).IgnoreError();
}

absl::Status Session::TakeUp() {
  absl::StatusOr<std::unique_ptr<Handoff>> handoff = Handoff::Connect(runtime_dir_);
  if (!handoff.ok()) return handoff.status();
  v1::Hello hello;
  hello.set_read_only(read_only_);
  hello.set_token(welcome_.token());
  shm::UniqueFd pool;  // the one that is attached
  const absl::StatusOr<v1::Welcome> welcome = (*handoff)->Hello(std::move(hello), pool);
  if (!welcome.ok()) return welcome.status();
  shm::MutexLock lock(mutex_);
  handoff_ = *std::move(handoff);
  files_.clear();  // the daemon has them no more
  return absl::OkStatus();
}

absl::StatusOr<Mapped> Session::Map(const MapOptions& options) {
  if (options.file != nullptr && options.file->impl_ != nullptr) return MapNumber(options, options.file->impl_->fd);
  if ((options.flags & MAP_ANONYMOUS) != 0) return MapNumber(options, -1);
  for (;;) {
    const std::uint64_t epoch = epoch_;
    absl::StatusOr<std::shared_ptr<PassedFile>> file = Pass(options.fd);
    if (!file.ok()) return file.status();
    absl::StatusOr<Mapped> mapped = MapNumber(options, *file == nullptr ? -1 : (*file)->number());
    // A daemon that was restarted does not have the descriptors that were passed.
    if (ErrnoOf(mapped.status()) == EBADF && *file != nullptr && epoch_ != epoch) continue;
    if (mapped.ok()) mapped->file = *std::move(file);
    return mapped;
  }
}

absl::StatusOr<Mapped> Session::MapNumber(const MapOptions& options, int number) {
  v1::MmapRequest request;
  request.set_length(options.length);
  request.set_prot(static_cast<std::uint32_t>(options.prot));
  request.set_flags(static_cast<std::uint32_t>(options.flags));
  request.set_offset(options.offset);
  request.set_address(options.address);
  request.set_fd(number);
  absl::StatusOr<v1::MmapResponse> grant = stub_->Mmap(request);
  if (!grant.ok()) return grant.status();
  Mapped mapped;
  mapped.grant = *std::move(grant);
  if (absl::Status status = AttachGrant(mapped); !status.ok()) return status;
  return mapped;
}

absl::Status Session::AttachGrant(Mapped& mapped) {
  mapped.attachment = whole_pool_;
  if (mapped.attachment != nullptr) return absl::OkStatus();
  const v1::MmapResponse& grant = mapped.grant;
  // All that mremap may make of it, so that it need not be attached anew.
  auto attachment =
      Attachment::Region(pool_.get(), welcome_, grant.address(), grant.room(), static_cast<int>(grant.prot()));
  if (!attachment.ok()) {
    Unmap(grant.address(), grant.length()).IgnoreError();
    return attachment.status();
  }
  mapped.attachment = *std::move(attachment);
  return absl::OkStatus();
}

absl::Status Session::WithFile(const MapOptions& options, const std::function<absl::Status(int)>& use) {
  if (options.file != nullptr && options.file->impl_ != nullptr) return use(options.file->impl_->fd);
  const absl::StatusOr<std::shared_ptr<PassedFile>> file = Pass(options.fd);
  if (!file.ok()) return file.status();
  if (*file == nullptr) return MakeStatus(EBADF, "no such open file: pass a descriptor that is open for reading");
  return use((*file)->number());
}

absl::StatusOr<Mapped> Session::Attach(int id, int flags, std::uint64_t address) {
  v1::ShmatRequest request;
  request.set_id(id);
  request.set_flags(flags);
  request.set_address(address);
  const absl::StatusOr<v1::ShmatResponse> attached = stub_->Shmat(request);
  if (!attached.ok()) return attached.status();
  Mapped mapped;
  mapped.grant.set_address(attached->address());
  mapped.grant.set_length(attached->length());
  mapped.grant.set_room(attached->length());
  mapped.grant.set_prot(attached->prot());
  mapped.grant.set_kind(v1::MAPPING_KIND_DIRECT);
  mapped.grant.set_existing(true);
  if (absl::Status status = AttachGrant(mapped); !status.ok()) return status;
  return mapped;
}

absl::Status Session::Detach(std::uint64_t address) {
  v1::ShmdtRequest request;
  request.set_address(address);
  return stub_->Shmdt(request);
}

absl::StatusOr<std::shared_ptr<PassedFile>> Session::Pass(int fd) {
  struct stat stat;
  const int open_flags = fcntl(fd, F_GETFL);
  // The daemon says what is wrong without a descriptor, since other checks come first.
  if (open_flags < 0 || fstat(fd, &stat) != 0) return nullptr;
  const FileKey key{stat.st_dev, stat.st_ino, open_flags & (O_ACCMODE | O_PATH)};

  for (;;) {
    const std::uint64_t epoch = epoch_;
    absl::Status failed;
    {
      shm::MutexLock lock(mutex_);
      std::erase_if(files_, [](const auto& entry) { return entry.second.expired(); });
      if (const auto known = files_.find(key); known != files_.end()) {
        if (auto file = known->second.lock()) return file;
      }
      const absl::StatusOr<int> number = handoff_->PassFile(fd);
      if (number.ok()) {
        auto file = std::make_shared<PassedFile>(*this, *number, epoch);
        files_[key] = file;
        return file;
      }
      failed = number.status();
    }
    if (!absl::IsUnavailable(failed)) return failed;
    if (absl::Status back = Reconnect(epoch, reconnect_timeout_); !back.ok()) return back;
  }
}

absl::Status Session::Unmap(std::uint64_t address, std::uint64_t length) {
  v1::MunmapRequest request;
  request.set_address(address);
  request.set_length(length);
  return stub_->Munmap(request);
}

absl::StatusOr<std::uint64_t> Session::Remap(std::uint64_t address, std::uint64_t old_length, std::uint64_t new_length,
                                             int flags, std::uint64_t new_address) {
  v1::MremapRequest request;
  request.set_address(address);
  request.set_old_length(old_length);
  request.set_new_length(new_length);
  request.set_flags(static_cast<std::uint32_t>(flags));
  request.set_new_address(new_address);
  const absl::StatusOr<v1::MremapResponse> response = stub_->Mremap(request);
  if (!response.ok()) return response.status();
  return response->length();
}

}  // namespace mapbroker
