// What a mapping can be made of: one open file as the broker uses it.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "daemon/nommu/file.h"
#include "daemon/nommu/map_request.h"
#include "daemon/record.pb.h"

namespace mapbroker::backing {

// What fstat(2) says of a file that the daemon keeps itself.
struct FileStat {
  std::string name;  // with " (deleted)" when it is unlinked
  std::uint64_t inode = 0;
  uid_t uid = 0;
  gid_t gid = 0;
  mode_t mode = 0;              // permission bits
  std::uint64_t size = 0;       // bytes
  std::uint64_t allocated = 0;  // bytes of pool memory
  std::uint64_t runs = 0;       // contiguous runs that hold it: one where all of it can be mapped shared (F1, F2)
};

// Thread-safe. Reading may take long: it is never done under a lock.
class Backing : public nommu::File {
 public:
  // Bytes that can be read now.
  virtual absl::StatusOr<std::uint64_t> Size() const = 0;

  // Reads up to into.size() bytes at `offset`; how many were read, 0 at the end of the file.
  virtual absl::StatusOr<std::size_t> Read(std::uint64_t offset, std::span<std::byte> into) const = 0;

  // Where the file lies now, as in /proc/maps: " (deleted)" follows the path of an unlinked file. May block.
  virtual std::string Path() const = 0;

  // Where the device's own memory for the request's range, whole pages, lies (S9, S10); it stays there until Close.
  // ENOSYS: this range cannot be mapped directly; any other error is the caller's answer.
  virtual absl::StatusOr<nommu::PoolAddress> GetUnmappedArea(const nommu::MapRequest& request) const;

  // A mapping of the memory that GetUnmappedArea named has gone, as a driver is told (P7); `last`: none is left. Never
  // blocks.
  virtual void Close(nommu::PoolAddress start, std::uint64_t length, bool last) const;
  // GetUnmappedArea of a daemon before this one named it. False: it cannot have.
  virtual bool Restored(nommu::PoolAddress start, std::uint64_t length) const;

  // What a daemon that is started later must know of it. Never blocks.
  virtual record::File Record() const;

  // Files that the daemon keeps itself; for a file of the host both are EBADF, since its clients have it open
  // themselves. Write: all of it, or nothing.
  virtual absl::Status Write(std::uint64_t offset, std::span<const std::byte> from) const;
  virtual absl::StatusOr<FileStat> Stat() const;
};

// S5: reads the file from `offset` into `memory`, which holds zeros; what lies past the end of the file stays zero.
// `cancelled` is asked between slices. Fails with the errno of the read, EIO if the file shrank meanwhile, so that
// bytes which were there at first are missing, and ECANCELED.
absl::Status Fill(const Backing& file, std::uint64_t offset, std::span<std::byte> memory,
                  const std::function<bool()>& cancelled);

}  // namespace mapbroker::backing
