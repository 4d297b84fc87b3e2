#include "shm_backend/available_memory.h"

#include <sys/statvfs.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <optional>

#include "absl/strings/numbers.h"

namespace mapbroker::shm {
namespace {

constexpr std::uint64_t kUnlimited = std::numeric_limits<std::uint64_t>::max();

// The number of a line "Name:   123 kB" of /proc/meminfo, 0 if there is none.
std::uint64_t MemInfo(const std::string& name) {
  std::ifstream file("/proc/meminfo");
  std::string word;
  while (file >> word) {
    std::uint64_t number;
    if (word == name + ":" && file >> number) return number;
    std::getline(file, word);
  }
  return 0;
}

// The number in a control group's file; nothing for "max" or no file.
std::optional<std::uint64_t> ReadNumber(const std::string& path) {
  std::string text;
  std::uint64_t number;
  if (!(std::ifstream(path) >> text) || !absl::SimpleAtoi(text, &number)) return std::nullopt;
  return number;
}

std::uint64_t LeftByControlGroups() {
  std::string line;
  std::ifstream file("/proc/self/cgroup");
  std::uint64_t left = kUnlimited;
  while (std::getline(file, line)) {
    if (line.rfind("0::/", 0) != 0) continue;
    for (std::string group = line.substr(3);; group.erase(group.rfind('/'))) {
      const std::string directory = "/sys/fs/cgroup" + group;
      const auto limit = ReadNumber(directory + "/memory.max");
      const auto used = ReadNumber(directory + "/memory.current");
      if (limit && used) left = std::min(left, *limit > *used ? *limit - *used : 0);
      if (group.empty()) break;
    }
  }
  return left;
}

}  // namespace

std::uint64_t AvailableMemory() { return std::min(MemInfo("MemAvailable") * 1024, LeftByControlGroups()); }

std::uint64_t AvailableHugePages() {
  const std::uint64_t free = MemInfo("HugePages_Free"), reserved = MemInfo("HugePages_Rsvd");
  return (free > reserved ? free - reserved : 0) * HugePageSize();
}

std::uint64_t HugePageSize() { return MemInfo("Hugepagesize") * 1024; }

std::uint64_t AvailableOn(const std::string& path) {
  struct statvfs fs;
  if (statvfs(path.c_str(), &fs) != 0) return 0;
  return static_cast<std::uint64_t>(fs.f_bavail) * fs.f_frsize;
}

}  // namespace mapbroker::shm
