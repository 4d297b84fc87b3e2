// D9, D10: zero, whose private mappings are zeroed memory, and null, which cannot be mapped.
#include <cstring>

#include "daemon/backing/device_kinds.h"

namespace mapbroker::backing {
namespace {

class ZeroDevice final : public Device {
 public:
  nommu::Capabilities capabilities() const override { return nommu::kMapCopy; }
  // Everybody's zeros are his own.
  bool shareable() const override { return false; }
  std::uint64_t size() const override { return 0; }
  absl::StatusOr<std::size_t> Read(std::uint64_t, std::span<std::byte> into) const override {
    std::memset(into.data(), 0, into.size());
    return into.size();
  }
  absl::Status Write(std::uint64_t, std::span<const std::byte>) override { return absl::OkStatus(); }
};

class NullDevice final : public Device {
 public:
  nommu::File::Kind file_kind() const override { return nommu::File::Kind::kNoMmap; }
  nommu::Capabilities capabilities() const override { return 0; }
  std::uint64_t size() const override { return 0; }
  absl::StatusOr<std::size_t> Read(std::uint64_t, std::span<std::byte>) const override { return std::size_t{0}; }
  absl::Status Write(std::uint64_t, std::span<const std::byte>) override { return absl::OkStatus(); }
};

template <typename Kind>
absl::StatusOr<std::shared_ptr<Device>> Make(const DeviceSpec& spec, const DeviceEnvironment&) {
  if (absl::Status status = DeviceOptions(spec).Finish(); !status.ok()) return status;
  return std::make_shared<Kind>();
}

}  // namespace

const DeviceKind kZeroDevice{"zero", Make<ZeroDevice>};
const DeviceKind kNullDevice{"null", Make<NullDevice>};

}  // namespace mapbroker::backing
