// A device whose byte at offset n is n mod 256, as an example of a kind: docs/adding-a-backing.md.
#include <algorithm>
#include <memory>

#include "daemon/backing/device_kinds.h"

namespace mapbroker::backing {
namespace {

class Ramp final : public Device {
 public:
  explicit Ramp(std::uint64_t size) : size_(size) {}

  // It has no memory of its own, so it can only be copied: MAP_SHARED is ENODEV (M15), and copies of a range are shared
  // by all who map it without PROT_WRITE (S3).
  nommu::Capabilities capabilities() const override { return nommu::kMapCopy; }
  std::uint64_t size() const override { return size_; }

  // May be called by several threads at once, and takes its time outside of every lock.
  absl::StatusOr<std::size_t> Read(std::uint64_t offset, std::span<std::byte> into) const override {
    if (offset >= size_) return std::size_t{0};
    const std::size_t count = std::min<std::uint64_t>(into.size(), size_ - offset);
    for (std::size_t i = 0; i < count; ++i) into[i] = static_cast<std::byte>(offset + i);
    return count;
  }

 private:
  const std::uint64_t size_;
};

// Options: size in bytes.
absl::StatusOr<std::shared_ptr<Device>> Make(const DeviceSpec& spec, const DeviceEnvironment&) {
  DeviceOptions options(spec);
  const auto size = options.Number("size", 1, UINT32_MAX);
  if (!size.ok()) return size.status();
  if (absl::Status status = options.Finish(); !status.ok()) return status;
  return std::make_shared<Ramp>(*size);
}

}  // namespace

extern const DeviceKind kRampDevice;
const DeviceKind kRampDevice{"ramp", Make};

}  // namespace mapbroker::backing
