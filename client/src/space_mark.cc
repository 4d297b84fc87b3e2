#include "client/src/space_mark.h"

#include <sys/mman.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>

#include "client/src/status.h"

namespace mapbroker {
namespace {

// The number of this address space, on a page that the kernel clears in a forked child, however that was made;
// handlers of pthread_atfork(3) would miss clone(2), and getpid(2) would take a vforked child for a forked one.
std::atomic<std::uint64_t>& Present() {
  static std::atomic<std::uint64_t>* const present = [] {
    constexpr std::size_t kPage = 4096;
    void* const page = mmap(nullptr, kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED || madvise(page, kPage, MADV_WIPEONFORK) != 0) std::abort();
    return new (page) std::atomic<std::uint64_t>(0);
  }();
  return *present;
}

// Numbers given so far, in this process and those that it was forked from.
std::atomic<std::uint64_t> last_number = 0;

}  // namespace

SpaceMark::SpaceMark() : number_(Present().load()) {
  if (number_ != 0) return;
  const std::uint64_t mine = ++last_number;
  if (Present().compare_exchange_strong(number_, mine)) number_ = mine;
}

bool SpaceMark::IsHere() const { return Present().load(std::memory_order_relaxed) == number_; }

absl::Status SpaceMark::Check() const {
  if (IsHere()) return absl::OkStatus();
  return MakeStatus(
      EINVAL,
      "fork: a child has none of its parent's mappings and no session, and connects only once it has executed "
      "a program: use vfork or posix_spawn instead",
      "X1");
}

}  // namespace mapbroker
