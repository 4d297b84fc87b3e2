// The pool's memory: one contiguous segment, committed in full before anybody may use it.
//
// Life cycle: Create() checks that the memory is there, makes the segment and commits every page of it, so that no
// later access, by any process, can fail with SIGBUS. The daemon holds the only Segment; clients get descriptors from
// ClientDescriptor(). Destroying the Segment removes what has a name (shm:, file:); memory that clients have
// attached stays with them until they detach it.
//
// A memfd is sealed: no client can shrink it under the others. A named pool cannot be sealed, and a client that may
// write to it could truncate it, so memfd is the default and names are for those who trust all their clients.
//
// Beside a named pool stands a mark, the empty file NAME.mapbrokerd-INODE, and its daemon holds a lock on the mark as
// long as it lives: clients have descriptors of the pool, and could take a lock of that in the moment between two
// daemons. A pool that is marked and not locked was left by a dead daemon: it is taken over where a ledger
// knows it (Adopt), else made anew. Whatever else has that name is not ours and is never touched.
#pragma once

#include <boost/interprocess/mapped_region.hpp>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "shm_backend/run_allocator.h"
#include "shm_backend/unique_fd.h"

namespace mapbroker::shm {

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
  // Errors, each one sentence: InvalidArgument (the size or kind is none), ResourceExhausted (says how much was asked
  // for and how much there is; nothing was made), AlreadyExists (another daemon has the name, or it holds what no
  // mapbrokerd made), else the failing call and its reason.
  static absl::StatusOr<std::unique_ptr<Segment>> Create(const SegmentSpec& spec);

  // Which pool it is, among all that were since the machine started.
  struct Identity {
    std::uint64_t device = 0, inode = 0;
    std::uint64_t size = 0;  // bytes
    friend bool operator==(const Identity&, const Identity&) = default;
  };
  Identity identity() const;

  // Takes over the pool of a daemon that has ended, with what it holds. `fd`: an open descriptor of it; empty: it is
  // found by the spec's name. NotFound: there is none, or it is another; AlreadyExists: its daemon lives.
  static absl::StatusOr<std::unique_ptr<Segment>> Adopt(const SegmentSpec& spec, const Identity& identity, UniqueFd fd);

  // The pool and its name stay for the next daemon.
  void Leave();
  // For the next daemon to take over. It stays the Segment's.
  int fd() const { return fd_.get(); }

  ~Segment();
  Segment(const Segment&) = delete;
  Segment& operator=(const Segment&) = delete;

  // All of the pool, mapped for reading and writing in this process, all zeros at first. Valid as long as the Segment.
  std::span<std::byte> bytes() const;

  // Bytes; what clients must align offsets and lengths of attachments to (4096, or the huge page size).
  std::uint64_t attach_granularity() const { return granularity_; }

  // A new descriptor of the pool. With `writable` false it is opened read-only and, for a user other than the daemon's,
  // cannot be reopened for writing. Thread-safe.
  absl::StatusOr<UniqueFd> ClientDescriptor(bool writable) const;

 private:
  Segment() = default;
  absl::Status MakeMemfd(const SegmentSpec& spec);
  absl::Status MakeNamed(const SegmentSpec& spec);
  absl::Status MakeNamedFile(const SegmentSpec& spec, const std::string& path);
  absl::Status CommitAndMap(const SegmentSpec& spec);

  UniqueFd fd_;
  std::uint64_t granularity_ = kPageSize;
  boost::interprocess::mapped_region region_;
  std::string path_;  // of a named pool once it is ours
  std::string mark_;
  UniqueFd mark_lock_;
};

}  // namespace mapbroker::shm
