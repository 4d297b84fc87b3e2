#include "mapbroker/ram_file.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "client/src/ram_file.h"
#include "client/src/status.h"

namespace mapbroker {
namespace {

// Bytes that one call carries (ram_files.proto).
constexpr std::size_t kMaxTransfer = 1 << 20;

absl::Status Closed() { return MakeStatus(EBADF, "the ram file is closed", "F"); }

}  // namespace

RamStat FromProto(const v1::RamStat& stat) {
  return RamStat{.name = stat.name(),
                 .inode = stat.inode(),
                 .uid = stat.uid(),
                 .gid = stat.gid(),
                 .mode = stat.mode(),
                 .size = stat.size(),
                 .allocated = stat.allocated(),
                 .runs = stat.runs()};
}

RamFile::RamFile() = default;
RamFile::RamFile(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
RamFile::RamFile(RamFile&& other) noexcept = default;
RamFile& RamFile::operator=(RamFile&& other) noexcept = default;
RamFile::~RamFile() = default;

RamFile::Impl::~Impl() {
  v1::RamCloseRequest request;
  request.set_fd(fd);
  // If the daemon is gone so is the file.
  session->stub().RamClose(request).IgnoreError();
}

absl::Status RamFile::Ftruncate(std::uint64_t size) const {
  if (impl_ == nullptr) return Closed();
  v1::RamFtruncateRequest request;
  request.set_fd(impl_->fd);
  request.set_size(static_cast<std::int64_t>(size));
  return impl_->session->stub().RamFtruncate(request);
}

absl::StatusOr<std::size_t> RamFile::Pread(std::span<std::byte> into, std::uint64_t offset) const {
  if (impl_ == nullptr) return Closed();
  v1::RamPreadRequest request;
  request.set_fd(impl_->fd);
  std::size_t done = 0;
  do {
    request.set_offset(offset + done);
    request.set_length(std::min(into.size() - done, kMaxTransfer));
    const absl::StatusOr<v1::RamPreadResponse> response = impl_->session->stub().RamPread(request);
    if (!response.ok()) return response.status();
    const std::string& data = response->data();
    if (data.empty()) break;
    std::memcpy(into.data() + done, data.data(), std::min(data.size(), into.size() - done));
    done += data.size();
  } while (done < into.size());
  return done;
}

absl::Status RamFile::Pwrite(std::span<const std::byte> from, std::uint64_t offset) const {
  if (impl_ == nullptr) return Closed();
  v1::RamPwriteRequest request;
  request.set_fd(impl_->fd);
  std::size_t done = 0;
  do {
    const std::size_t part = std::min(from.size() - done, kMaxTransfer);
    request.set_offset(offset + done);
    request.set_data(from.data() + done, part);
    if (absl::Status status = impl_->session->stub().RamPwrite(request); !status.ok()) return status;
    done += part;
  } while (done < from.size());
  return absl::OkStatus();
}

absl::StatusOr<RamStat> RamFile::Stat() const {
  if (impl_ == nullptr) return Closed();
  v1::RamFstatRequest request;
  request.set_fd(impl_->fd);
  const absl::StatusOr<v1::RamStat> stat = impl_->session->stub().RamFstat(request);
  if (!stat.ok()) return stat.status();
  return FromProto(*stat);
}

}  // namespace mapbroker
