// Files that the daemon itself keeps: ram files, whose contents are pool memory that several processes can map shared
// (rules F), devices and the files of images (rules D).
#pragma once

#include <fcntl.h>
#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "mapbroker/export.h"

namespace mapbroker {

struct FileStat {
  std::string name;  // "ram:/...", "dev:/..." or "mnt:/..."; " (deleted)" follows when it is unlinked
  std::uint64_t inode = 0;
  uid_t uid = 0;
  gid_t gid = 0;
  mode_t mode = 0;              // permission bits
  std::uint64_t size = 0;       // bytes
  std::uint64_t allocated = 0;  // bytes of pool memory
  std::uint64_t runs = 0;       // contiguous runs that hold it; with one, all of it can be mapped shared (F1, F2)
};

// An open file of the daemon; Client::Open makes it, MapOptions::file maps it. Move-only; closes itself. It keeps its
// client's connection alive. Thread-safe.
class MAPBROKER_EXPORT File {
 public:
  // Closed: every call fails with EBADF.
  File();
  File(File&& other) noexcept;
  File& operator=(File&& other) noexcept;
  ~File();

  // Of a ram file, in bytes. From size 0 the file gets one contiguous, zeroed run (F1): EFBIG past the pool's size,
  // ENOMEM if none is free. Later growth need not be contiguous (F2). ETXTBSY where a shared mapping uses what would be
  // cut off (F4).
  absl::Status Ftruncate(std::uint64_t size) const;

  // Reads until `into` is full or the file ends; how many bytes.
  absl::StatusOr<std::size_t> Pread(std::span<std::byte> into, std::uint64_t offset) const;

  // Writes all of `from`, at the end of a file opened with O_APPEND. Atomic to other writers for each MiB. EFBIG,
  // ENOMEM.
  absl::Status Pwrite(std::span<const std::byte> from, std::uint64_t offset) const;

  absl::StatusOr<FileStat> Stat() const;

  // What it is known by in its session, -1 if it is closed.
  int number() const;

 private:
  friend class Client;
  friend class Session;
  struct Impl;
  explicit File(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace mapbroker
