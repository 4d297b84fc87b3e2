// Amounts of memory as people write them.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace mapbroker {

// Bytes of "4096", "64K", "256M", "2G", "1T" (powers of 1024; "MiB" and "MB" mean the same as "M").
absl::StatusOr<std::uint64_t> ParseSize(const std::string& text);

}  // namespace mapbroker
