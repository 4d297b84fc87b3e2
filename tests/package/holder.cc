// Holds memory of the pool. For every line of input it checks that the memory holds what it wrote, writes anew, maps
// something else and says in one line how that went.
#include <mapbroker/client.h>
#include <sys/mman.h>

#include <cstdint>
#include <cstring>
#include <iostream>
#include <string>
#include <vector>

namespace {

constexpr std::uint64_t kLength = 4 << 20;

// A pattern that no other round and no fresh memory has.
void Write(std::span<std::byte> bytes, std::uint64_t round) {
  for (std::uint64_t at = 0; at + 8 <= bytes.size(); at += 8) {
    const std::uint64_t word = (round << 32) ^ (at * 0x9e3779b97f4a7c15) ^ 1;
    std::memcpy(&bytes[at], &word, sizeof(word));
  }
}

}  // namespace

int main() {
  auto client = mapbroker::Client::Connect();
  if (!client.ok()) return std::cout << client.status().message() << std::endl, 1;
  const mapbroker::MapOptions options{
      .length = kLength, .prot = PROT_READ | PROT_WRITE, .flags = MAP_PRIVATE | MAP_ANONYMOUS};
  auto held = client->Map(options);
  if (!held.ok()) return std::cout << held.status().message() << std::endl, 1;
  std::uint64_t round = 0;
  Write(held->bytes(), round);
  std::cout << "holds" << std::endl;
  std::vector<std::byte> expected(kLength);
  for (std::string line; std::getline(std::cin, line);) {
    Write(expected, round);
    const bool intact = std::memcmp(held->bytes().data(), expected.data(), kLength) == 0;
    Write(held->bytes(), ++round);
    const auto other = client->Map(options);
    std::cout << (intact ? "intact" : "SPOILED") << ", "
              << (other.ok() ? "mapped" : std::string(other.status().message())) << std::endl;
  }
}
