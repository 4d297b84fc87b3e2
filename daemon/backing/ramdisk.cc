// D6, D7: a block device with memory of its own, contiguous from the start.
#include "daemon/backing/device_kinds.h"

namespace mapbroker::backing {
namespace {

class Ramdisk final : public MemoryDevice {
 public:
  Ramdisk(std::unique_ptr<DeviceMemory> memory, bool direct) : MemoryDevice(std::move(memory)), direct_(direct) {}

  nommu::Capabilities capabilities() const override {
    if (!direct_) return nommu::kMapCopy;
    return nommu::kMapCopy | nommu::kMapDirect | nommu::kReadMap | nommu::kWriteMap | nommu::kExecMap;
  }
  std::map<std::string, std::string> Properties() const override { return {{"map", direct_ ? "direct" : "copy"}}; }

 private:
  const bool direct_;
};

// Options: size; map=copy makes it answer as a block device of the host does, which can only be copied.
absl::StatusOr<std::shared_ptr<Device>> Make(const DeviceSpec& spec, const DeviceEnvironment& environment) {
  DeviceOptions options(spec);
  const auto size = options.Number("size", 1, environment.pool.size());
  if (!size.ok()) return size.status();
  const auto map = options.Choice("map", {"direct", "copy"}, "direct");
  if (!map.ok()) return map.status();
  if (absl::Status status = options.Finish(); !status.ok()) return status;
  auto memory = DeviceMemory::Make(*size, spec, environment);
  if (!memory.ok()) return memory.status();
  return std::make_shared<Ramdisk>(*std::move(memory), *map == "direct");
}

}  // namespace

const DeviceKind kRamdisk{"ramdisk", Make};

}  // namespace mapbroker::backing
