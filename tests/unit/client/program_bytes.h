// Program files that tests put together.
#pragma once

#include <cstring>
#include <span>
#include <string>

#include "client/loader/program_file.h"

namespace mapbroker::loader {

// The bytes as a file; they must outlive it.
inline ProgramFile FileOf(const std::string& bytes) {
  return {.size = bytes.size(), .read = [&bytes](std::uint64_t offset, std::span<std::byte> into) {
            if (offset > bytes.size() || into.size() > bytes.size() - offset) return false;
            std::memcpy(into.data(), bytes.data() + offset, into.size());
            return true;
          }};
}

}  // namespace mapbroker::loader
