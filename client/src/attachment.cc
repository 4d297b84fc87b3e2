#include "client/src/attachment.h"

#include <sys/mman.h>

#include <boost/interprocess/exceptions.hpp>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/src/status.h"
#include "shm_backend/descriptor_memory.h"

namespace mapbroker {
namespace {

namespace ipc = boost::interprocess;

// What mapped_region does not do: protections other than reading and writing.
absl::Status Protect(const ipc::mapped_region& region, int prot) {
  if ((prot & PROT_EXEC) == 0 && prot != PROT_NONE) return absl::OkStatus();
  if (mprotect(region.get_address(), region.get_size(), prot) == 0) return absl::OkStatus();
  const int error = errno;
  return MakeStatus(error, absl::StrCat("cannot attach with this protection: ", std::strerror(error),
                                        "; memory that is executed needs a pool that is not on a noexec file system"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Attachment>> Attachment::Region(int pool, const v1::Welcome& welcome,
                                                               std::uint64_t address, std::uint64_t length, int prot) {
  // On huge pages only whole ones can be attached.
  const std::uint64_t granularity = welcome.attach_granularity();
  const std::uint64_t first = address / granularity * granularity;
  const std::uint64_t end = (address + length + granularity - 1) / granularity * granularity;
  const ipc::mode_t mode = (prot & PROT_WRITE) != 0 ? ipc::read_write : ipc::read_only;
  try {
    ipc::mapped_region region(shm::DescriptorMemory(pool, mode), mode, static_cast<ipc::offset_t>(first), end - first);
    if (absl::Status status = Protect(region, prot); !status.ok()) return status;
    return std::unique_ptr<Attachment>(new Attachment(std::move(region), first));
  } catch (const ipc::interprocess_exception& error) {
    return MakeStatus(error.get_native_error() != 0 ? error.get_native_error() : ENOMEM,
                      absl::StrCat("cannot attach ", length, " bytes: ", error.what()));
  }
}

absl::StatusOr<std::unique_ptr<Attachment>> Attachment::WholePool(int pool, const v1::Welcome& welcome, bool writable) {
  const ipc::mode_t mode = writable ? ipc::read_write : ipc::read_only;
  void* const base = reinterpret_cast<void*>(welcome.pool_base());
  try {
    ipc::mapped_region region(shm::DescriptorMemory(pool, mode), mode, 0, welcome.pool_size(), base,
                              MAP_FIXED_NOREPLACE);
    return std::unique_ptr<Attachment>(new Attachment(std::move(region), 0));
  } catch (const ipc::interprocess_exception& error) {
    return MakeStatus(error.get_native_error() != 0 ? error.get_native_error() : EEXIST,
                      absl::StrCat("cannot attach the whole pool at 0x", absl::Hex(welcome.pool_base()), ": ",
                                   error.what(), "; a process can attach it once"));
  }
}

Attachment::Attachment(ipc::mapped_region region, std::uint64_t first) : region_(std::move(region)), first_(first) {
  madvise(region_.get_address(), region_.get_size(), MADV_DONTFORK);
}

Attachment::~Attachment() {
  // In a forked child nothing is attached there, or what the child itself has attached since.
  if (!mark_.IsHere()) static_cast<void>(new ipc::mapped_region(std::move(region_)));
}

void Attachment::DetachPart(std::uint64_t address, std::uint64_t length) {
  if (!mark_.IsHere()) return;
  // Atomically replaces the pool's pages by nothing; cannot fail but for lack of kernel memory, and then the pages
  // stay.
  mmap(At(address), length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
}

}  // namespace mapbroker
