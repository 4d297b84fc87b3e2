// Maps a file through mapbrokerd and counts its lines: every process that does so uses the same copy.
#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <iostream>

#include "mapbroker/client.h"

int main(int, char** argv) {
  auto client = mapbroker::Client::Connect();
  if (!client.ok()) return std::cerr << client.status().message() << '\n', 1;
  const int fd = open(argv[1], O_RDONLY);
  struct stat file;
  if (fd < 0 || fstat(fd, &file) != 0) return perror(argv[1]), 1;
  const auto length = static_cast<std::uint64_t>(file.st_size);
  auto mapping = client->Map({.length = length, .prot = PROT_READ, .flags = MAP_PRIVATE, .fd = fd});
  if (!mapping.ok()) return std::cerr << mapping.status().message() << '\n', 1;
  const std::span<const std::byte> bytes = mapping->bytes();
  std::cout << std::count(bytes.begin(), bytes.end(), std::byte{'\n'}) << " lines at pool address "
            << mapping->address() << '\n';
}
