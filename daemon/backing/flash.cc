// D5: a flash chip (the kernel's mtd): read, program, erase. Programming only clears bits, erasing sets them.
//
// A rom cannot be opened for writing. No mapping ever shows status or half-written data: a chip whose contents change
// by programming (nor) is not changed where it is mapped directly (EBUSY), nor mapped while it is changed. Copies are
// read between two operations.
#include <algorithm>
#include <boost/icl/interval_map.hpp>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "daemon/backing/device_kinds.h"
#include "daemon/nommu/refusal.h"
#include "shm_backend/mutex.h"

namespace mapbroker::backing {
namespace {

using nommu::Refuse;

// What an erased bit reads as.
constexpr std::byte kErased{0xff};

enum class Chip { kRam, kRom, kNor };

class Flash final : public Device {
 public:
  Flash(std::unique_ptr<DeviceMemory> memory, Chip chip, std::uint64_t erase_size, bool direct, bool shared_only)
      : memory_(std::move(memory)), chip_(chip), erase_size_(erase_size), direct_(direct), shared_only_(shared_only) {}

  nommu::Capabilities capabilities() const override {
    if (!direct_) return nommu::kMapCopy;
    const nommu::Capabilities read = nommu::kMapCopy | nommu::kMapDirect | nommu::kReadMap | nommu::kExecMap;
    return chip_ == Chip::kRam ? read | nommu::kWriteMap : read;
  }
  absl::Status MayOpen(const Credentials&, unsigned wanted) const override {
    if (chip_ != Chip::kRom || (wanted & kWrite) == 0) return absl::OkStatus();
    return Refuse(EACCES, "D5", "the chip is a rom: open it O_RDONLY");
  }
  std::uint64_t size() const override { return memory_->bytes().size(); }

  absl::StatusOr<std::size_t> Read(std::uint64_t offset, std::span<std::byte> into) const override {
    shm::MutexLock lock(mutex_);
    return memory_->Read(offset, into);
  }

  // Programs.
  absl::Status Write(std::uint64_t offset, std::span<const std::byte> from) override {
    shm::MutexLock lock(mutex_);
    if (absl::Status status = CheckChange(offset, from.size()); !status.ok()) return status;
    std::byte* const to = memory_->bytes().data() + offset;
    if (chip_ == Chip::kNor) {
      std::transform(from.begin(), from.end(), to, to, std::bit_and<>());
    } else {
      std::memcpy(to, from.data(), from.size());
    }
    return absl::OkStatus();
  }

  absl::Status Erase(std::uint64_t offset, std::uint64_t length) override {
    if (offset % erase_size_ != 0 || length % erase_size_ != 0) {
      return Refuse(EINVAL, "D5", absl::StrCat("offset and length must be multiples of the erase size ", erase_size_));
    }
    shm::MutexLock lock(mutex_);
    if (absl::Status status = CheckChange(offset, length); !status.ok()) return status;
    std::fill_n(memory_->bytes().begin() + static_cast<std::ptrdiff_t>(offset), length, kErased);
    return absl::OkStatus();
  }

  absl::StatusOr<nommu::PoolAddress> GetUnmappedArea(const nommu::MapRequest& request) override {
    if (!request.shared() && shared_only_) {
      return Refuse(EACCES, "S11", "this kernel's flash driver maps no private memory directly: map it MAP_SHARED");
    }
    shm::MutexLock lock(mutex_);
    const auto start = memory_->AddressOf(request.offset, request.length);
    if (start.ok()) windows_ += std::pair(WindowOf(memory_->OffsetOf(*start), request.length), 1u);
    return start;
  }
  bool Restored(nommu::PoolAddress start, std::uint64_t length) override {
    if (!memory_->Contains(start, length)) return false;
    shm::MutexLock lock(mutex_);
    windows_ += std::pair(WindowOf(memory_->OffsetOf(start), length), 1u);
    return true;
  }
  void Close(nommu::PoolAddress start, std::uint64_t length, bool last) override {
    if (!last) return;
    shm::MutexLock lock(mutex_);
    windows_ -= std::pair(WindowOf(memory_->OffsetOf(start), length), 1u);
  }
  void Record(record::Device& to) const override { memory_->Record(to); }

  std::map<std::string, std::string> Properties() const override {
    const char* const chip = chip_ == Chip::kRam ? "ram" : chip_ == Chip::kRom ? "rom" : "nor";
    return {{"chip", chip}, {"erase_size", absl::StrCat(erase_size_)}, {"map", direct_ ? "direct" : "copy"}};
  }

 private:
  static boost::icl::interval<std::uint64_t>::type WindowOf(std::uint64_t offset, std::uint64_t length) {
    return boost::icl::interval<std::uint64_t>::right_open(offset, offset + length);
  }

  absl::Status CheckChange(std::uint64_t offset, std::uint64_t length) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (absl::Status status = memory_->CheckWrite(offset, length); !status.ok()) return status;
    if (chip_ == Chip::kNor && boost::icl::intersects(windows_, WindowOf(offset, length))) {
      return Refuse(EBUSY, "D5",
                    "the range is mapped directly, and no mapping may show half-written data: unmap it first");
    }
    return absl::OkStatus();
  }

  const std::unique_ptr<DeviceMemory> memory_;
  const Chip chip_;
  const std::uint64_t erase_size_;
  const bool direct_;
  const bool shared_only_;
  mutable shm::Mutex mutex_;
  // Bytes of the chip that are mapped directly, and how often.
  boost::icl::interval_map<std::uint64_t, std::uint32_t> windows_ ABSL_GUARDED_BY(mutex_);
};

// Options: chip (ram, rom or nor), size and erase_size in bytes; map=copy for a chip whose data lines the processor
// does not see. A rom's contents are those it is made with.
absl::StatusOr<std::shared_ptr<Device>> Make(const DeviceSpec& spec, const DeviceEnvironment& environment) {
  DeviceOptions options(spec);
  const auto chip = options.Choice("chip", {"ram", "rom", "nor"}, "nor");
  if (!chip.ok()) return chip.status();
  const auto size = options.Number("size", 1, environment.pool.size());
  if (!size.ok()) return size.status();
  const auto erase_size = options.Number("erase_size", 1, *size, std::min<std::uint64_t>(*size, 64 << 10));
  if (!erase_size.ok()) return erase_size.status();
  if (*size % *erase_size != 0) return Refuse(EINVAL, "D5", "the size of a flash is a multiple of its erase_size");
  const auto map = options.Choice("map", {"direct", "copy"}, "direct");
  if (!map.ok()) return map.status();
  if (absl::Status status = options.Finish(); !status.ok()) return status;
  auto memory = DeviceMemory::Make(*size, spec, environment, *chip == "ram" ? std::byte{0} : kErased);
  if (!memory.ok()) return memory.status();
  return std::make_shared<Flash>(*std::move(memory),
                                 *chip == "ram"   ? Chip::kRam
                                 : *chip == "rom" ? Chip::kRom
                                                  : Chip::kNor,
                                 *erase_size, *map == "direct", environment.profile.flash_is_shared_only);
}

}  // namespace

const DeviceKind kFlash{"flash", Make};

}  // namespace mapbroker::backing
