// Whether code runs in the address space that an object was made in (X1, X2): a forked child has another one, a vforked
// or CLONE_VM child the same.
#pragma once

#include <cstdint>

#include "absl/status/status.h"

namespace mapbroker {

// Copyable; thread-safe.
class SpaceMark {
 public:
  // Of the present address space.
  SpaceMark();

  bool IsHere() const;
  // OK here; EINVAL by X1 in a forked child, with what to do instead.
  absl::Status Check() const;

 private:
  std::uint64_t number_;
};

}  // namespace mapbroker
