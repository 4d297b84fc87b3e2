// One process of script/demo: maps FILE, says where and what it sees, and does what it is told on standard input.
//
//   example_share [--private-write] FILE
//
// Prints "address ADDRESS length BYTES digest SHA256  -" at start and at every command:
//   digest    again
//   scribble  overwrites the first page of its mapping (with --private-write) and prints
//   quit      ends, as does the end of input
#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <iostream>
#include <string>

#include "mapbroker/client.h"

namespace {

void Print(const mapbroker::Mapping& mapping) {
  std::cout << "address " << mapping.address() << " length " << mapping.length() << " digest " << std::flush;
  // Its output is the end of the line.
  FILE* sum = popen("sha256sum", "w");
  if (sum == nullptr) return;
  std::fwrite(mapping.bytes().data(), 1, mapping.bytes().size(), sum);
  pclose(sum);
}

int Fail(const absl::Status& status) {
  std::cerr << status.message() << '\n';
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  const bool writes = argc == 3 && std::strcmp(argv[1], "--private-write") == 0;
  if (argc != 2 && !writes) return 2;
  const int fd = open(argv[argc - 1], O_RDONLY | O_CLOEXEC);
  struct stat file;
  if (fd < 0 || fstat(fd, &file) != 0) return std::perror(argv[argc - 1]), 1;

  auto client = mapbroker::Client::Connect();
  if (!client.ok()) return Fail(client.status());
  auto mapping = client->Map({.length = static_cast<std::uint64_t>(file.st_size),
                              .prot = writes ? PROT_READ | PROT_WRITE : PROT_READ,
                              .flags = MAP_PRIVATE,
                              .fd = fd});
  if (!mapping.ok()) return Fail(mapping.status());

  std::string command = "digest";
  do {
    if (command == "quit") break;
    if (command == "scribble" && writes) {
      const auto page = mapping->bytes().first(std::min<std::size_t>(4096, mapping->length()));
      std::fill(page.begin(), page.end(), std::byte{'!'});
    }
    Print(*mapping);
  } while (std::getline(std::cin, command));
}
