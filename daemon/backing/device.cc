#include "daemon/backing/device.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "daemon/nommu/refusal.h"
#include "daemon/size.h"

namespace mapbroker::backing {

using nommu::kPageSize;
using nommu::Refuse;

absl::StatusOr<std::uint64_t> DeviceOptions::Number(const std::string& name, std::uint64_t least, std::uint64_t most,
                                                    std::optional<std::uint64_t> otherwise) {
  const auto given = left_.extract(name);
  if (given.empty()) {
    if (otherwise) return *otherwise;
    return Refuse(EINVAL, "D", absl::StrCat("a device of kind ", kind_, " needs the option ", name));
  }
  const absl::StatusOr<std::uint64_t> number = ParseSize(given.mapped());
  if (!number.ok() || *number < least || *number > most) {
    return Refuse(EINVAL, "D",
                  absl::StrCat("the option ", name, " of a ", kind_, " is a number from ", least, " to ", most));
  }
  return *number;
}

absl::StatusOr<std::string> DeviceOptions::Choice(const std::string& name, const std::vector<std::string>& choices,
                                                  const std::string& otherwise) {
  const auto given = left_.extract(name);
  const std::string choice = given.empty() ? otherwise : given.mapped();
  if (std::find(choices.begin(), choices.end(), choice) != choices.end()) return choice;
  return Refuse(EINVAL, "D",
                absl::StrCat("the option ", name, " of a ", kind_, " is one of ", absl::StrJoin(choices, ", ")));
}

absl::Status DeviceOptions::Finish() const {
  if (left_.empty()) return absl::OkStatus();
  return Refuse(EINVAL, "D", absl::StrCat("a device of kind ", kind_, " has no option ", left_.begin()->first));
}

absl::Status Device::MayOpen(const Credentials&, unsigned) const { return absl::OkStatus(); }

absl::Status Device::Write(std::uint64_t, std::span<const std::byte>) {
  return Refuse(EINVAL, "D", "the device cannot be written to");
}

absl::StatusOr<nommu::PoolAddress> Device::GetUnmappedArea(const nommu::MapRequest&) {
  return Refuse(ENOSYS, "S10", "the device has no memory of its own");
}

absl::Status Device::Erase(std::uint64_t, std::uint64_t) {
  return Refuse(ENOTTY, "D5", "the device is no flash, so there is nothing to erase");
}

absl::StatusOr<std::unique_ptr<DeviceMemory>> DeviceMemory::Allocate(std::uint64_t size,
                                                                     const std::optional<shm::Run>& restored,
                                                                     const DeviceEnvironment& environment) {
  if (restored) {
    const std::uint64_t all = environment.pool.size() / kPageSize;
    if (size > environment.pool.size() || restored->pages != nommu::PagesOf(size) || restored->first > all ||
        restored->pages > all - restored->first) {
      return Refuse(EINVAL, "D", "the device's memory is not what it was");
    }
    return std::unique_ptr<DeviceMemory>(new DeviceMemory(
        *restored, size, environment, Charge::Add(environment.payer, Resource::kBytes, restored->pages * kPageSize)));
  }
  absl::StatusOr<Charge> charge = Charge::Take(environment.payer, Resource::kBytes, nommu::PagesOf(size) * kPageSize);
  if (!charge.ok()) return charge.status();
  const std::optional<shm::Run> run =
      size > environment.pool.size() ? std::nullopt : environment.pages.Allocate(nommu::PagesOf(size));
  if (!run) {
    return Refuse(ENOMEM, "D", absl::StrCat("no contiguous run of ", size, " bytes is free for the device"));
  }
  return std::unique_ptr<DeviceMemory>(new DeviceMemory(*run, size, environment, *std::move(charge)));
}

absl::StatusOr<std::unique_ptr<DeviceMemory>> DeviceMemory::Make(std::uint64_t size, const DeviceSpec& spec,
                                                                 const DeviceEnvironment& environment,
                                                                 std::byte blank) {
  absl::StatusOr<std::unique_ptr<DeviceMemory>> memory = Allocate(size, spec.restored, environment);
  if (!memory.ok() || spec.restored) return memory;
  const std::span<std::byte> bytes = (*memory)->bytes();
  if (blank != std::byte{0}) std::fill(bytes.begin(), bytes.end(), blank);
  if (spec.contents == nullptr) return memory;
  const absl::StatusOr<std::uint64_t> contents = spec.contents->Size();
  if (!contents.ok()) return contents.status();
  if (*contents > size) {
    return Refuse(ENOSPC, "D", absl::StrCat("the contents of ", *contents, " bytes do not fit into the device"));
  }
  if (absl::Status filled = Fill(*spec.contents, 0, bytes.first(*contents), [] { return false; }); !filled.ok()) {
    return filled;
  }
  return memory;
}

DeviceMemory::DeviceMemory(shm::Run run, std::uint64_t size, const DeviceEnvironment& environment, Charge charge)
    : charge_(std::move(charge)),
      run_(run),
      pages_(environment.pages),
      bytes_(environment.pool.subspan(run.first * kPageSize, size)),
      room_(run.pages * kPageSize) {}

DeviceMemory::~DeviceMemory() { pages_.Free(run_); }

absl::StatusOr<std::size_t> DeviceMemory::Read(std::uint64_t offset, std::span<std::byte> into) const {
  if (offset >= bytes_.size()) return std::size_t{0};
  const std::size_t count = std::min<std::size_t>(into.size(), bytes_.size() - offset);
  std::memcpy(into.data(), bytes_.data() + offset, count);
  return count;
}

absl::Status DeviceMemory::CheckWrite(std::uint64_t offset, std::size_t count) const {
  if (offset <= bytes_.size() && count <= bytes_.size() - offset) return absl::OkStatus();
  return Refuse(ENOSPC, "D", absl::StrCat("the device has only ", bytes_.size(), " bytes"));
}

absl::StatusOr<nommu::PoolAddress> DeviceMemory::AddressOf(std::uint64_t offset, std::uint64_t length) const {
  if (offset >= room_ || length > room_ - offset) {
    return Refuse(EINVAL, "S10", absl::StrCat("the mapping goes past the device's ", bytes_.size(), " bytes"));
  }
  return run_.first * kPageSize + offset;
}

bool DeviceMemory::Contains(nommu::PoolAddress start, std::uint64_t length) const {
  const std::uint64_t first = run_.first * kPageSize;
  return start >= first && start - first <= room_ && length <= room_ - (start - first);
}

void DeviceMemory::Record(record::Device& to) const {
  to.set_first(run_.first);
  to.set_pages(run_.pages);
}

absl::Status MemoryDevice::Write(std::uint64_t offset, std::span<const std::byte> from) {
  if (absl::Status status = memory_->CheckWrite(offset, from.size()); !status.ok()) return status;
  std::memcpy(memory_->bytes().data() + offset, from.data(), from.size());
  return absl::OkStatus();
}

}  // namespace mapbroker::backing
