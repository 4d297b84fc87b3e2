#include "mapbroker/file.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "client/src/file.h"
#include "client/src/status.h"

namespace mapbroker {
namespace {

// Bytes that one call carries (files.proto).
constexpr std::size_t kMaxTransfer = 1 << 20;

absl::Status Closed() { return MakeStatus(EBADF, "the ram file is closed", "F"); }

}  // namespace

FileStat FromProto(const v1::FileStat& stat) {
  return FileStat{.name = stat.name(),
                  .inode = stat.inode(),
                  .uid = stat.uid(),
                  .gid = stat.gid(),
                  .mode = stat.mode(),
                  .size = stat.size(),
                  .allocated = stat.allocated(),
                  .runs = stat.runs()};
}

File::File() = default;
File::File(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
File::File(File&& other) noexcept = default;
File& File::operator=(File&& other) noexcept = default;
File::~File() = default;

// If the daemon is gone so is the file.
File::Impl::~Impl() { session->CloseNumber(fd); }

absl::Status File::Ftruncate(std::uint64_t size) const {
  if (impl_ == nullptr) return Closed();
  v1::FtruncateRequest request;
  request.set_fd(impl_->fd);
  request.set_size(static_cast<std::int64_t>(size));
  return impl_->session->stub().Ftruncate(request);
}

absl::StatusOr<std::size_t> File::Pread(std::span<std::byte> into, std::uint64_t offset) const {
  if (impl_ == nullptr) return Closed();
  v1::PreadRequest request;
  request.set_fd(impl_->fd);
  std::size_t done = 0;
  do {
    request.set_offset(offset + done);
    request.set_length(std::min(into.size() - done, kMaxTransfer));
    const absl::StatusOr<v1::PreadResponse> response = impl_->session->stub().Pread(request);
    if (!response.ok()) return response.status();
    const std::string& data = response->data();
    if (data.empty()) break;
    std::memcpy(into.data() + done, data.data(), std::min(data.size(), into.size() - done));
    done += data.size();
  } while (done < into.size());
  return done;
}

absl::Status File::Pwrite(std::span<const std::byte> from, std::uint64_t offset) const {
  if (impl_ == nullptr) return Closed();
  v1::PwriteRequest request;
  request.set_fd(impl_->fd);
  std::size_t done = 0;
  do {
    const std::size_t part = std::min(from.size() - done, kMaxTransfer);
    request.set_offset(offset + done);
    request.set_data(from.data() + done, part);
    if (absl::Status status = impl_->session->stub().Pwrite(request); !status.ok()) return status;
    done += part;
  } while (done < from.size());
  return absl::OkStatus();
}

int File::number() const { return impl_ == nullptr ? -1 : impl_->fd; }

absl::StatusOr<FileStat> File::Stat() const {
  if (impl_ == nullptr) return Closed();
  v1::FstatRequest request;
  request.set_fd(impl_->fd);
  const absl::StatusOr<v1::FileStat> stat = impl_->session->stub().Fstat(request);
  if (!stat.ok()) return stat.status();
  return FromProto(*stat);
}

}  // namespace mapbroker
