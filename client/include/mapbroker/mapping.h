// A mapping of pool memory that is attached to this process.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "mapbroker/export.h"

namespace mapbroker {

// What the memory of a mapping is.
enum class MappingKind {
  kAnonymous,    // zeroed memory of one's own (S1)
  kSharedCopy,   // one copy of a file range for all who map that range (S3)
  kPrivateCopy,  // a copy of one's own (S7)
  kDirect,       // the backing device's own memory (S9)
};

// Move-only; detaches and unmaps itself when destroyed. It keeps its client's connection alive, so it may outlive the
// Client. Different mappings may be used from different threads; one mapping is not thread-safe.
class MAPBROKER_EXPORT Mapping {
 public:
  // An empty mapping: no bytes, address 0.
  Mapping();
  Mapping(Mapping&& other) noexcept;
  Mapping& operator=(Mapping&& other) noexcept;
  ~Mapping();

  // The memory, `length()` bytes (P8). Valid until the mapping is unmapped, moved from or destroyed, also while the
  // daemon is down. Writing to it without PROT_WRITE raises SIGSEGV, unless the whole pool was attached.
  std::span<std::byte> bytes() const;

  // Pool address of the first byte: its offset in the pool in bytes, the same in every process.
  std::uint64_t address() const;
  // Bytes (P8).
  std::uint64_t length() const;
  // PROT_READ | PROT_WRITE | PROT_EXEC as asked for.
  int protection() const;
  MappingKind kind() const;
  // The memory existed before: nothing was read or zeroed for this mapping.
  bool existing() const;

  // Detaches and unmaps now, and says how it went; the mapping is empty afterwards, whatever the answer. OK if it
  // was empty already.
  absl::Status Unmap();

  // mremap(2) (U3): changes the length in place, in bytes, rounded up to pages. ENOMEM past what the mapping was made
  // with (P6), EPERM if it is or may be shared.
  absl::Status Resize(std::uint64_t length);

  // Gives up the object and keeps the mapping, until the session ends or Client::Munmap. Its pool address. Only for
  // sessions that attach the whole pool; in others the memory is detached.
  std::uint64_t Release();

 private:
  friend class Client;
  struct Impl;
  explicit Mapping(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace mapbroker
