// A driver in a process of its own, for tests that stop and kill it.
//
//   driver RUNTIME_DIR NAME MEMORY die-in-mmap|serve
//
// Its memory is MEMORY bytes; offsets of the device are offsets of it. Says "driving", what is mapped already as OFFSET
// and LENGTH, and an end of line; then, for a line of input, what the line asks for: "close" the number of closes so
// far, "unregister".
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <iostream>
#include <string>

#include "mapbroker/driver.h"
#include "mapbroker/error.h"

int main(int, char** argv) {
  using namespace mapbroker;
  const std::uint64_t memory = std::stoull(argv[3]);
  const bool dies = argv[4] == std::string("die-in-mmap");
  auto client = Client::Connect({.runtime_dir = argv[1]});
  if (!client.ok()) {
    std::cout << client.status() << std::endl;
    return 1;
  }
  std::atomic<int> closes = 0;
  DriverOperations operations;
  operations.get_unmapped_area = [](const DriverRequest& request) { return request.offset; };
  operations.mmap = [dies](const DriverRequest&, const DriverArea&) {
    if (dies) kill(getpid(), SIGKILL);
    return absl::OkStatus();
  };
  operations.read = [](std::uint64_t, std::span<std::byte> into) {
    std::memset(into.data(), 'r', into.size());
    return into.size();
  };
  operations.close = [&closes](const DriverArea&) { ++closes; };
  auto driver = Driver::Register(*client, {.name = argv[2], .mode = 0666, .memory = memory}, operations);
  if (!driver.ok()) {
    std::cout << "refused " << ErrnoOf(driver.status()) << ' ' << driver.status().message() << std::endl;
    return 1;
  }
  std::cout << "driving";
  for (const DriverArea& area : driver->areas()) std::cout << ' ' << area.offset << ' ' << area.length;
  std::cout << std::endl;
  for (std::string line; std::getline(std::cin, line);) {
    if (line == "close") std::cout << closes << std::endl;
    if (line == "unregister") {
      driver->Unregister();
      std::cout << "done" << std::endl;
    }
  }
  return 0;
}
