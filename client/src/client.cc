// The C++ face: Client and Mapping.
#include "mapbroker/client.h"

#include <cerrno>
#include <utility>

#include "absl/strings/escaping.h"
#include "client/src/client_impl.h"
#include "client/src/file.h"
#include "client/src/session.h"
#include "client/src/status.h"

namespace mapbroker {
namespace {

MappingKind KindOf(v1::MappingKind kind) {
  switch (kind) {
    case v1::MAPPING_KIND_SHARED_COPY:
      return MappingKind::kSharedCopy;
    case v1::MAPPING_KIND_PRIVATE_COPY:
      return MappingKind::kPrivateCopy;
    case v1::MAPPING_KIND_DIRECT:
      return MappingKind::kDirect;
    default:
      return MappingKind::kAnonymous;
  }
}

ShmSegment SegmentOf(const v1::ShmSegment& segment) {
  return ShmSegment{.id = segment.id(),
                    .key = segment.key(),
                    .size = segment.size(),
                    .uid = segment.uid(),
                    .cuid = segment.cuid(),
                    .gid = segment.gid(),
                    .cgid = segment.cgid(),
                    .mode = segment.mode(),
                    .nattch = segment.nattch(),
                    .marked_destroyed = segment.marked_destroyed(),
                    .cpid = segment.cpid(),
                    .lpid = segment.lpid(),
                    .atime = segment.atime(),
                    .dtime = segment.dtime(),
                    .ctime = segment.ctime()};
}

}  // namespace

// Members go in reverse order: the file is given back and the memory detached before the session can end.
struct Mapping::Impl {
  std::shared_ptr<Session> session;
  Mapped mapped;
};

Mapping::Mapping() = default;
Mapping::Mapping(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Mapping::Mapping(Mapping&& other) noexcept = default;
Mapping& Mapping::operator=(Mapping&& other) noexcept {
  if (this != &other) {
    Unmap().IgnoreError();
    impl_ = std::move(other.impl_);
  }
  return *this;
}
Mapping::~Mapping() { Unmap().IgnoreError(); }

std::span<std::byte> Mapping::bytes() const {
  if (impl_ == nullptr) return {};
  return {impl_->mapped.attachment->At(address()), length()};
}

std::uint64_t Mapping::address() const { return impl_ == nullptr ? 0 : impl_->mapped.grant.address(); }
std::uint64_t Mapping::length() const { return impl_ == nullptr ? 0 : impl_->mapped.grant.length(); }
int Mapping::protection() const { return impl_ == nullptr ? 0 : static_cast<int>(impl_->mapped.grant.prot()); }
MappingKind Mapping::kind() const {
  return impl_ == nullptr ? MappingKind::kAnonymous : KindOf(impl_->mapped.grant.kind());
}
bool Mapping::existing() const { return impl_ != nullptr && impl_->mapped.grant.existing(); }

absl::Status Mapping::Unmap() {
  if (impl_ == nullptr) return absl::OkStatus();
  const std::unique_ptr<Impl> gone = std::move(impl_);
  // Detached first: once the daemon knows, the memory may be somebody else's.
  gone->mapped.attachment.reset();
  return gone->session->Unmap(gone->mapped.grant.address(), gone->mapped.grant.length());
}

absl::Status Mapping::Resize(std::uint64_t length) {
  if (impl_ == nullptr) return MakeStatus(EINVAL, "the mapping is empty", "U3");
  const absl::StatusOr<std::uint64_t> resized = impl_->session->Remap(address(), this->length(), length, 0, 0);
  if (!resized.ok()) return resized.status();
  impl_->mapped.grant.set_length(*resized);
  return absl::OkStatus();
}

std::uint64_t Mapping::Release() {
  const std::uint64_t at = address();
  impl_.reset();
  return at;
}

Client::Client(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
Client::Client(Client&& other) noexcept = default;
Client& Client::operator=(Client&& other) noexcept = default;
Client::~Client() = default;

absl::StatusOr<Client> Client::Connect(const ConnectOptions& options) {
  absl::StatusOr<std::shared_ptr<Session>> session = Session::Open(options);
  if (!session.ok()) return session.status();
  return Of(*std::move(session));
}

std::string Client::Token() const { return absl::BytesToHexString(impl_->session->welcome().token()); }

File Client::FileOf(int number) { return File(std::make_unique<File::Impl>(impl_->session, number)); }

Client Client::Of(std::shared_ptr<Session> session) { return Client(std::make_shared<Impl>(Impl{std::move(session)})); }

absl::StatusOr<Mapping> Client::Map(const MapOptions& options) {
  absl::StatusOr<Mapped> mapped = impl_->session->Map(options);
  if (!mapped.ok()) return mapped.status();
  return Mapping(std::make_unique<Mapping::Impl>(Mapping::Impl{impl_->session, *std::move(mapped)}));
}

absl::Status Client::Munmap(std::uint64_t address, std::uint64_t length) {
  return impl_->session->Unmap(address, length);
}

absl::StatusOr<std::uint64_t> Client::Mremap(std::uint64_t address, std::uint64_t old_length, std::uint64_t new_length,
                                             int flags, std::uint64_t new_address) {
  return impl_->session->Remap(address, old_length, new_length, flags, new_address);
}

std::byte* Client::pool_base() const { return impl_->session->pool_base(); }

absl::Status Client::ListMappings(pid_t pid, const std::function<bool(const MappingRow&)>& row) {
  return Inspector::Of(*this).ListMappings(pid, row);
}

absl::StatusOr<PoolStatistics> Client::Statistics() {
  absl::StatusOr<DaemonStatus> now = Inspector::Of(*this).Status();
  if (!now.ok()) return now.status();
  return std::move(now->pool);
}

absl::StatusOr<File> Client::Open(const std::string& name, int flags, mode_t mode) {
  v1::OpenRequest request;
  request.set_name(name);
  request.set_flags(static_cast<std::uint32_t>(flags));
  request.set_mode(mode);
  const absl::StatusOr<v1::OpenResponse> opened = impl_->session->stub().Open(request);
  if (!opened.ok()) return opened.status();
  return File(std::make_unique<File::Impl>(impl_->session, opened->fd()));
}

absl::StatusOr<FileStat> Client::Stat(const std::string& name) {
  v1::StatRequest request;
  request.set_name(name);
  const absl::StatusOr<v1::FileStat> stat = impl_->session->stub().Stat(request);
  if (!stat.ok()) return stat.status();
  return FromProto(*stat);
}

absl::Status Client::Unlink(const std::string& name) {
  v1::UnlinkRequest request;
  request.set_name(name);
  return impl_->session->stub().Unlink(request);
}

absl::Status Client::ListFiles(const std::string& prefix, const std::function<bool(const FileStat&)>& file) {
  v1::ListFilesRequest request;
  request.set_prefix(prefix);
  return impl_->session->stub().ListFiles(request, [&](const v1::FileStat& next) { return file(FromProto(next)); });
}

absl::StatusOr<int> Client::Shmget(int key, std::uint64_t size, int flags) {
  v1::ShmgetRequest request;
  request.set_key(key);
  request.set_size(size);
  request.set_flags(flags);
  const absl::StatusOr<v1::ShmgetResponse> segment = impl_->session->stub().Shmget(request);
  if (!segment.ok()) return segment.status();
  return segment->id();
}

absl::StatusOr<Mapping> Client::Shmat(int id, int flags, std::uint64_t address) {
  absl::StatusOr<Mapped> mapped = impl_->session->Attach(id, flags, address);
  if (!mapped.ok()) return mapped.status();
  return Mapping(std::make_unique<Mapping::Impl>(Mapping::Impl{impl_->session, *std::move(mapped)}));
}

absl::Status Client::Shmdt(std::uint64_t address) { return impl_->session->Detach(address); }

absl::StatusOr<ShmSegment> Client::ShmStat(int id) {
  v1::ShmStatRequest request;
  request.set_id(id);
  const absl::StatusOr<v1::ShmSegment> segment = impl_->session->stub().ShmStat(request);
  if (!segment.ok()) return segment.status();
  return SegmentOf(*segment);
}

absl::Status Client::ShmSet(int id, uid_t uid, gid_t gid, mode_t mode) {
  v1::ShmSetRequest request;
  request.set_id(id);
  request.set_uid(uid);
  request.set_gid(gid);
  request.set_mode(mode);
  return impl_->session->stub().ShmSet(request);
}

absl::Status Client::ShmRemove(int id) {
  v1::ShmRemoveRequest request;
  request.set_id(id);
  return impl_->session->stub().ShmRemove(request);
}

absl::Status Client::ListShmSegments(const std::function<bool(const ShmSegment&)>& segment) {
  return impl_->session->stub().ShmList([&](const v1::ShmSegment& next) { return segment(SegmentOf(next)); });
}

std::string Client::profile() const { return impl_->session->welcome().profile(); }
std::uint64_t Client::page_size() const { return impl_->session->welcome().page_size(); }

}  // namespace mapbroker
