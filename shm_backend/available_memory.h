// How much memory there is for a pool, before it is asked for: asking for more would wake the kernel's OOM killer.
#pragma once

#include <cstdint>
#include <string>

namespace mapbroker::shm {

// Bytes of memory that this process can get: MemAvailable, or what its control groups (v2) leave, whichever is less.
std::uint64_t AvailableMemory();

// Bytes of huge pages of the default size that are free and not reserved.
std::uint64_t AvailableHugePages();

// Bytes of one huge page of the default size; 0 where there are none.
std::uint64_t HugePageSize();

// Bytes free for this user on the file system of `path`; 0 if it cannot be looked at.
std::uint64_t AvailableOn(const std::string& path);

}  // namespace mapbroker::shm
