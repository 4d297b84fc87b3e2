#include "daemon/backing/backing.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "daemon/nommu/refusal.h"
#include "shm_backend/failure_point.h"

namespace mapbroker::backing {
namespace {

// Bytes between two questions whether anybody still wants the copy: about a millisecond of reading.
constexpr std::size_t kSlice = std::size_t{8} << 20;

}  // namespace

absl::StatusOr<nommu::PoolAddress> Backing::GetUnmappedArea(const nommu::MapRequest&) const {
  return nommu::Refuse(ENOSYS, "S10", "the file has no memory of its own");
}

void Backing::Close(nommu::PoolAddress, std::uint64_t, bool) const {}

bool Backing::Restored(nommu::PoolAddress, std::uint64_t) const { return false; }

record::File Backing::Record() const {
  record::File file;
  file.set_kind(record::File::KIND_REMEMBERED);
  file.set_device(id.device);
  file.set_inode(id.inode);
  file.set_path(Path());
  file.set_birth(id.birth);
  file.set_capabilities(capabilities);
  return file;
}

absl::Status Backing::Write(std::uint64_t, std::span<const std::byte>) const {
  return nommu::Refuse(EBADF, "", "the file is not the daemon's: write to it directly");
}

absl::StatusOr<FileStat> Backing::Stat() const {
  return nommu::Refuse(EBADF, "", "the file is not the daemon's: look at it directly");
}

absl::Status Fill(const Backing& file, std::uint64_t offset, std::span<std::byte> memory,
                  const std::function<bool()>& cancelled) {
  if (const int error = shm::FailAt(shm::Point::kFill)) {
    return nommu::Refuse(error, "S5", absl::StrCat("the file cannot be read: ", std::strerror(error)));
  }
  const absl::StatusOr<std::uint64_t> size = file.Size();
  if (!size.ok()) return size.status();
  const std::uint64_t expected = offset < *size ? std::min<std::uint64_t>(*size - offset, memory.size()) : 0;

  std::size_t done = 0;
  while (done < memory.size()) {
    if (cancelled()) return nommu::Refuse(ECANCELED, "", "everybody who asked for this copy is gone");
    const std::size_t slice = std::min(kSlice, memory.size() - done);
    const absl::StatusOr<std::size_t> read = file.Read(offset + done, memory.subspan(done, slice));
    if (!read.ok()) return read.status();
    if (*read == 0) break;
    done += *read;
  }
  if (done < expected) {
    return nommu::Refuse(EIO, "S5",
                         absl::StrCat("the file shrank while it was read: ", done, " of ", expected,
                                      " bytes were there; map it again when its writer is done"));
  }
  return absl::OkStatus();
}

}  // namespace mapbroker::backing
