// A complete driver: a frame buffer, in memory of the pool, into which this process draws a moving picture.
//
//   example_framebuffer_driver [--name dev:/movie] [--width 320] [--height 200] [--rate 25]
//
// Runs until SIGINT or SIGTERM. Killed and started again it takes the device over, and who has it mapped sees it go on.
#include "mapbroker/driver.h"

#include <signal.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <future>
#include <iostream>
#include <string>

#include "examples/framebuffer/frame.h"

namespace framebuffer {
namespace {

struct Arguments {
  std::string runtime_dir, name = "dev:/movie";
  Geometry geometry{.width = 320, .height = 200};
  long rate = 25;  // frames a second
};

void Draw(std::byte* memory, const Geometry& geometry) {
  FrameHeader& header = HeaderIn(memory, geometry);
  // A driver that was killed while it drew has left an odd number.
  const std::uint64_t drawing = header.sequence.load() | 1;
  header.sequence.store(drawing);
  std::atomic_thread_fence(std::memory_order_release);
  const std::uint64_t frame = header.frame.load() + 1;
  auto* const pixels = reinterpret_cast<std::uint32_t*>(memory);
  for (std::uint32_t y = 0; y < geometry.height; ++y) {
    for (std::uint32_t x = 0; x < geometry.width; ++x) pixels[y * geometry.width + x] = PixelAt(frame, x, y);
  }
  header.frame.store(frame);
  header.sequence.store(drawing + 1);
}

int Fail(const absl::Status& status) {
  std::cerr << status.message() << '\n';
  return 1;
}

int Run(const Arguments& arguments) {
  // Blocked before there are threads, so that only sigtimedwait below takes them.
  sigset_t stop;
  sigemptyset(&stop);
  sigaddset(&stop, SIGINT);
  sigaddset(&stop, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &stop, nullptr);

  auto client = mapbroker::Client::Connect({.runtime_dir = arguments.runtime_dir});
  if (!client.ok()) return Fail(client.status());
  const Geometry geometry = arguments.geometry;
  mapbroker::DriverOperations operations;
  operations.get_unmapped_area =
      [size = geometry.bytes()](const mapbroker::DriverRequest& request) -> absl::StatusOr<std::uint64_t> {
    // The last page may be only partly the device's.
    if (request.offset >= size || request.length > (size - request.offset + 4095) / 4096 * 4096) {
      return mapbroker::DriverError(EINVAL, "the frame buffer ends before that");
    }
    return request.offset;  // the device is its memory
  };
  operations.mmap = [](const mapbroker::DriverRequest&, const mapbroker::DriverArea& area) {
    std::cout << "mapped " << area.length << " bytes from " << area.offset << std::endl;
    return absl::OkStatus();
  };
  operations.close = [](const mapbroker::DriverArea& area) {
    std::cout << "closed " << area.length << " bytes from " << area.offset << std::endl;
  };
  // A call may come before Register has returned, so it waits for the memory.
  std::promise<std::span<const std::byte>> registered;
  operations.read = [size = geometry.bytes(), memory = registered.get_future().share()](
                        std::uint64_t offset, std::span<std::byte> into) -> absl::StatusOr<std::size_t> {
    if (offset >= size) return 0;
    const std::size_t count = std::min<std::size_t>(into.size(), size - offset);
    std::memcpy(into.data(), memory.get().data() + offset, count);
    return count;
  };
  const std::string width = std::to_string(geometry.width), height = std::to_string(geometry.height);
  auto driver = mapbroker::Driver::Register(*client,
                                            {.name = arguments.name,
                                             .mode = 0644,
                                             .memory = geometry.bytes(),
                                             .properties = {{"width", width},
                                                            {"height", height},
                                                            {"stride", std::to_string(geometry.stride())},
                                                            {"format", "xrgb8888"}}},
                                            operations);
  if (!driver.ok()) return Fail(driver.status());
  registered.set_value(driver->memory());
  std::cout << arguments.name << ' ' << width << 'x' << height << ", " << arguments.rate << " frames a second"
            << std::endl;

  const timespec period{.tv_sec = arguments.rate == 1 ? 1 : 0,
                        .tv_nsec = arguments.rate == 1 ? 0 : 1'000'000'000 / arguments.rate};
  do {
    Draw(driver->memory().data(), geometry);
  } while (sigtimedwait(&stop, nullptr, &period) < 0);
  return 0;
}

}  // namespace
}  // namespace framebuffer

int main(int argc, char** argv) {
  framebuffer::Arguments arguments;
  CLI::App program("draws a moving picture into a frame buffer that it drives");
  program.add_option("--runtime-dir", arguments.runtime_dir, "directory of the daemon's sockets");
  program.add_option("--name", arguments.name, "the device (default dev:/movie)");
  program.add_option("--width", arguments.geometry.width, "pixels")->check(CLI::Range(1, 8192));
  program.add_option("--height", arguments.geometry.height, "rows")->check(CLI::Range(1, 8192));
  program.add_option("--rate", arguments.rate, "frames a second")->check(CLI::Range(1, 1000));
  CLI11_PARSE(program, argc, argv);
  return framebuffer::Run(arguments);
}
