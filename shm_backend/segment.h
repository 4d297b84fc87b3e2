// The pool's memory: one contiguous segment, committed in full before anybody may use it.
//
// Life cycle: Create() checks that the memory is there, makes the segment and commits every page of it, so that no
// later access, by any process, can fail with SIGBUS. The daemon holds the only Segment; clients get descriptors from
// ClientDescriptor(). Destroying the Segment removes what has a name (shm:, file:); memory that clients have
// attached stays with them until they detach it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "shm_backend/unique_fd.h"

namespace mapbroker::shm {

// Unit of regions, in bytes. The kernel's PAGE_SIZE; semantics.md fixes it.
inline constexpr std::uint64_t kPageSize = 4096;

// What the pool is made of.
struct SegmentSpec {
  enum class Kind {
    kMemfd,  // anonymous, sealed against shrinking and growing: the default
    kShm,    // named POSIX shared memory object, `name` is "/NAME"
    kFile,   // a path on tmpfs, hugetlbfs or a DAX file system, `name` is the path
  };
  Kind kind = Kind::kMemfd;
  std::string name;
  std::uint64_t size = 0;   // bytes, a positive multiple of the page size (of the huge page size with huge_pages)
  bool huge_pages = false;  // kMemfd: MFD_HUGETLB; kFile: the path must lie on hugetlbfs; kShm: EINVAL
};

// Parses "memfd", "shm:/NAME" or "file:PATH" into kind and name. InvalidArgument with one clear sentence otherwise.
absl::StatusOr<SegmentSpec> ParseSegmentSpec(const std::string& text);

class Segment {
 public:
  // Errors, each one sentence: InvalidArgument (size or kind is none), ResourceExhausted (says how much was asked for
  // and how much there is; nothing was made), AlreadyExists (the name is in use by another daemon, or holds
  // something that no mapbrokerd made), PermissionDenied, Internal with the failing call and its errno.
  static absl::StatusOr<std::unique_ptr<Segment>> Create(const SegmentSpec& spec);

  virtual ~Segment() = default;

  // All of the pool, mapped read and write in this process. Valid as long as the Segment.
  virtual std::span<std::byte> bytes() const = 0;

  // Bytes; what clients must align offsets and lengths of attachments to (4096, or the huge page size).
  virtual std::uint64_t attach_granularity() const = 0;

  // A new descriptor of the pool. With `writable` false it is opened read-only and, for a user other than the
  // daemon's, cannot be reopened for writing.
  virtual absl::StatusOr<UniqueFd> ClientDescriptor(bool writable) const = 0;
};

}  // namespace mapbroker::shm
