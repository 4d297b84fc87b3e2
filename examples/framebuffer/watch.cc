// A client of the frame buffer: maps it, takes frames as they are drawn, checks that each is whole and shows what its
// number says, and writes the last as a PNG file.
//
//   example_framebuffer_watch [--name dev:/movie] [--frames 10] [-o FILE.png]
//
// Exit status: 0 all frames were right, 1 one was not or none came within ten seconds.
#include <fcntl.h>
#include <png.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstring>
#include <iostream>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "examples/framebuffer/frame.h"
#include "mapbroker/client.h"

namespace framebuffer {
namespace {

constexpr std::chrono::seconds kPatience(10);

struct Frame {
  std::uint64_t number = 0;
  std::vector<std::uint32_t> pixels;
};

// The present frame; none while one is being drawn.
std::optional<Frame> Take(const std::byte* memory, const Geometry& geometry) {
  const FrameHeader& header = HeaderIn(const_cast<std::byte*>(memory), geometry);
  const std::uint64_t before = header.sequence.load();
  if (before % 2 != 0) return std::nullopt;
  Frame frame{.number = header.frame.load(), .pixels = std::vector<std::uint32_t>(geometry.width * geometry.height)};
  std::memcpy(frame.pixels.data(), memory, geometry.pixel_bytes());
  std::atomic_thread_fence(std::memory_order_acquire);
  if (header.sequence.load() != before || frame.number == 0) return std::nullopt;
  return frame;
}

// The first frame after number `last`, if it comes in time.
std::optional<Frame> Next(const std::byte* memory, const Geometry& geometry, std::uint64_t last) {
  const auto until = std::chrono::steady_clock::now() + kPatience;
  while (std::chrono::steady_clock::now() < until) {
    auto frame = Take(memory, geometry);
    if (frame && frame->number > last) return frame;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return std::nullopt;
}

bool IsRight(const Frame& frame, const Geometry& geometry) {
  for (std::uint32_t y = 0; y < geometry.height; ++y) {
    for (std::uint32_t x = 0; x < geometry.width; ++x) {
      if (frame.pixels[y * geometry.width + x] != PixelAt(frame.number, x, y)) return false;
    }
  }
  return true;
}

bool WritePng(const std::string& path, const Frame& frame, const Geometry& geometry) {
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  image.width = geometry.width;
  image.height = geometry.height;
  image.format = PNG_FORMAT_BGRA;  // 0xffRRGGBB in memory, on little-endian machines
  return png_image_write_to_file(&image, path.c_str(), 0, frame.pixels.data(), 0, nullptr) != 0;
}

int Fail(const std::string& why) {
  std::cerr << why << '\n';
  return 1;
}

int Run(const std::string& runtime_dir, const std::string& name, std::uint64_t frames, const std::string& png) {
  auto client = mapbroker::Client::Connect({.runtime_dir = runtime_dir, .read_only = true});
  if (!client.ok()) return Fail(std::string(client.status().message()));
  const auto device = client->GetDevice(name);
  if (!device.ok()) return Fail(std::string(device.status().message()));
  Geometry geometry;
  try {
    geometry.width = static_cast<std::uint32_t>(std::stoul(device->properties.at("width")));
    geometry.height = static_cast<std::uint32_t>(std::stoul(device->properties.at("height")));
  } catch (const std::exception&) {
    return Fail(name + " is no frame buffer");
  }
  const auto file = client->Open(name, O_RDONLY);
  if (!file.ok()) return Fail(std::string(file.status().message()));
  auto mapping = client->Map({.length = geometry.bytes(), .prot = PROT_READ, .flags = MAP_SHARED, .file = &*file});
  if (!mapping.ok()) return Fail(std::string(mapping.status().message()));

  std::optional<Frame> frame;
  std::uint64_t last = 0;
  for (std::uint64_t taken = 0; taken < frames; ++taken) {
    frame = Next(mapping->bytes().data(), geometry, last);
    if (!frame) return Fail("no frame came after number " + std::to_string(last));
    if (!IsRight(*frame, geometry)) return Fail("frame " + std::to_string(frame->number) + " shows something else");
    last = frame->number;
    std::cout << "frame " << last << std::endl;
  }
  if (!png.empty() && !WritePng(png, *frame, geometry)) return Fail(png + " cannot be written");
  return 0;
}

}  // namespace
}  // namespace framebuffer

int main(int argc, char** argv) {
  std::string runtime_dir, name = "dev:/movie", png;
  std::uint64_t frames = 10;
  CLI::App program("takes frames of a frame buffer and checks them");
  program.add_option("--runtime-dir", runtime_dir, "directory of the daemon's sockets");
  program.add_option("--name", name, "the device (default dev:/movie)");
  program.add_option("--frames", frames, "how many to take (default 10)")->check(CLI::Range(1, 1'000'000));
  program.add_option("-o", png, "PNG file for the last frame");
  CLI11_PARSE(program, argc, argv);
  return framebuffer::Run(runtime_dir, name, frames, png);
}
