// A request for memory, and what it turns into once the rules have looked at it.
#pragma once

#include <sys/mman.h>

#include <cstdint>

namespace mapbroker::nommu {

inline constexpr std::uint64_t kPageSize = 4096;  // bytes; fixed by semantics.md

// Offset into the pool in bytes; plays the part of a physical address.
using PoolAddress = std::uint64_t;

// The arguments of mmap(2). The file travels beside it.
struct MapRequest {
  std::uint64_t length = 0;  // bytes
  std::uint32_t prot = 0;    // PROT_*
  std::uint32_t flags = 0;   // MAP_*
  std::uint64_t offset = 0;  // bytes
  PoolAddress address = 0;   // a wanted address, 0 for none
  bool traced = false;       // the caller is being traced, so its private mappings are its own (S2)

  bool anonymous() const { return (flags & MAP_ANONYMOUS) != 0; }
  bool shared() const { return (flags & MAP_TYPE) == MAP_SHARED; }
};

// The arguments of mremap(2).
struct RemapRequest {
  PoolAddress address = 0;
  std::uint64_t old_length = 0;  // bytes
  std::uint64_t new_length = 0;  // bytes
  std::uint32_t flags = 0;       // MREMAP_*
  PoolAddress new_address = 0;   // looked at with MREMAP_FIXED only
};

// Bytes to pages, rounding up. REQUIRES: the rounded length does not wrap (M6 has been checked).
constexpr std::uint64_t PagesOf(std::uint64_t bytes) { return (bytes + kPageSize - 1) / kPageSize; }

// What kind of mapping a request becomes: the answer to the second question.
enum class MappingKind {
  kAnonymous,    // zeroed memory of the caller's own (S1)
  kSharedCopy,   // one copy for all who ask for the range (S3)
  kPrivateCopy,  // a copy of the caller's own (S7)
  kDirect,       // the device's own memory (S9)
};

}  // namespace mapbroker::nommu
