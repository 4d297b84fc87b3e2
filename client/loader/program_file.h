// A program file as the parsers see it: bytes that anybody may have written.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

namespace mapbroker::loader {

inline constexpr std::uint64_t kPageSize = 4096;
// What the kernel gives a program without an MMU that does not say how much it needs, in bytes.
inline constexpr std::uint64_t kDefaultStack = 128 * 1024;

struct ProgramFile {
  std::uint64_t size = 0;  // bytes
  // Reads all of `into` from `offset`; false if it cannot, which nobody asks for past `size`.
  std::function<bool(std::uint64_t offset, std::span<std::byte> into)> read;
};

inline std::uint64_t PageDown(std::uint64_t bytes) { return bytes / kPageSize * kPageSize; }
// REQUIRES: the result fits.
inline std::uint64_t PageUp(std::uint64_t bytes) { return PageDown(bytes + kPageSize - 1); }

}  // namespace mapbroker::loader
