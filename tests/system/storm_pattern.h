// What the storm's memory holds: words that tell whose they are, computed and never stored.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace mapbroker::testing {

// The word at `offset` bytes, a multiple of 8, of what `owner` names; never 0.
inline std::uint64_t WordOf(std::uint64_t owner, std::uint64_t offset) {
  std::uint64_t word = (owner * 0x9e3779b97f4a7c15u) ^ (offset / 8 * 0xbf58476d1ce4e5b9u);
  word ^= word >> 29;
  return word | 1;
}

// The byte of it at any offset.
inline std::byte ByteOf(std::uint64_t owner, std::uint64_t offset) {
  return static_cast<std::byte>(WordOf(owner, offset / 8 * 8) >> (8 * (offset % 8)));
}

// `from`: the offset of the first byte.
inline void Paint(std::span<std::byte> bytes, std::uint64_t owner, std::uint64_t from = 0) {
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = ByteOf(owner, from + i);
}

// The first byte that is not what it should be; bytes.size() if there is none. `or_zero`: whole words may be 0, since
// nobody has painted there yet.
inline std::size_t FirstFault(std::span<const std::byte> bytes, std::uint64_t owner, std::uint64_t from = 0,
                              bool or_zero = false) {
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    // Read once: somebody else may paint it just now.
    const std::byte is = *const_cast<const volatile std::byte*>(&bytes[i]);
    if (is != ByteOf(owner, from + i) && !(or_zero && is == std::byte{0})) return i;
  }
  return bytes.size();
}

inline bool IsZero(std::span<const std::byte> bytes) {
  return bytes.empty() ||
         (bytes[0] == std::byte{0} && std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0);
}

// The files of the host that all clients map: a few pages and a bit.
inline constexpr std::uint64_t kStormFiles = 6;
inline std::uint64_t StormFileSize(std::uint64_t file) { return (1 + 3 * file) * 4096 + 77 * file; }
inline std::uint64_t StormFileOwner(std::uint64_t file) { return 1'000'000 + file; }
inline std::uint64_t RamFileOwner(std::uint64_t client, std::uint64_t file) { return 2'000'000 + client * 16 + file; }
inline std::uint64_t SegmentOwner(std::uint64_t key) { return 3'000'000 + key; }

// What a client exits with after it has told on standard error what was wrong.
inline constexpr int kWrong = 42;

}  // namespace mapbroker::testing
