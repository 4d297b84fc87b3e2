// What the example's driver and its clients agree on: where a frame lies in the device, and what it shows.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

namespace framebuffer {

// Behind the pixels. A sequence lock: odd while a frame is being drawn, so that who reads a frame and finds the same
// even number before and after has read a whole one.
struct FrameHeader {
  std::atomic<std::uint64_t> sequence;
  std::atomic<std::uint64_t> frame;  // number of the frame, from 1; 0: there is none yet
};
static_assert(std::atomic<std::uint64_t>::is_always_lock_free, "processes share it");

struct Geometry {
  std::uint32_t width = 0, height = 0;  // pixels

  std::size_t stride() const { return std::size_t{4} * width; }  // bytes
  std::size_t pixel_bytes() const { return stride() * height; }
  // Where the header begins: at the next cache line.
  std::size_t header_offset() const { return (pixel_bytes() + 63) / 64 * 64; }
  std::size_t bytes() const { return header_offset() + sizeof(FrameHeader); }
};

inline FrameHeader& HeaderIn(std::byte* memory, const Geometry& geometry) {
  return *reinterpret_cast<FrameHeader*>(memory + geometry.header_offset());
}

// The picture of frame `frame`: colours that move along the diagonal. 0xffRRGGBB.
inline std::uint32_t PixelAt(std::uint64_t frame, std::uint32_t x, std::uint32_t y) {
  const auto shade = [&](std::uint64_t value) { return static_cast<std::uint32_t>(value & 0xff); };
  return 0xff000000U | shade(x + frame) << 16 | shade(y + 2 * frame) << 8 | shade(x + y + 3 * frame);
}

}  // namespace framebuffer
