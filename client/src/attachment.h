// Pool memory attached to this process.
#pragma once

#include <boost/interprocess/mapped_region.hpp>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/src/space_mark.h"
#include "mapbroker/v1/handoff.pb.h"

namespace mapbroker {

// Detaches when destroyed. Forked children do not inherit the memory: the broker knows nothing of them (X1).
class Attachment {
 public:
  ~Attachment();
  Attachment(const Attachment&) = delete;
  Attachment& operator=(const Attachment&) = delete;

  // Attaches `length` bytes at pool address `address` for `prot` (PROT_*). ENOMEM if this process has no room.
  static absl::StatusOr<std::unique_ptr<Attachment>> Region(int pool, const v1::Welcome& welcome, std::uint64_t address,
                                                            std::uint64_t length, int prot);

  // Attaches the whole pool at welcome.pool_base. EEXIST if something of this process lies there.
  static absl::StatusOr<std::unique_ptr<Attachment>> WholePool(int pool, const v1::Welcome& welcome, bool writable);

  // The byte at pool address `address`, which must be attached.
  std::byte* At(std::uint64_t address) const {
    return static_cast<std::byte*>(region_.get_address()) + (address - first_);
  }

  // Detaches whole pages in the middle; their addresses stay taken until all is detached.
  void DetachPart(std::uint64_t address, std::uint64_t length);

 private:
  Attachment(boost::interprocess::mapped_region region, std::uint64_t first);

  boost::interprocess::mapped_region region_;
  SpaceMark mark_;
  std::uint64_t first_;  // pool address of its first byte
};

}  // namespace mapbroker
