// File system images as hostile input: parsed, and every file of them read and sited.
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "daemon/backing/image.h"

namespace {

using mapbroker::backing::Device;

// The input is the image: the first byte chooses the kind.
class InputDevice final : public Device {
 public:
  InputDevice(const std::uint8_t* data, std::size_t size) : data_(data), size_(size) {}
  mapbroker::nommu::Capabilities capabilities() const override { return mapbroker::nommu::kMapCopy; }
  std::uint64_t size() const override { return size_; }
  absl::StatusOr<std::size_t> Read(std::uint64_t offset, std::span<std::byte> into) const override {
    if (offset >= size_) return std::size_t{0};
    const std::size_t count = std::min<std::size_t>(into.size(), size_ - offset);
    std::memcpy(into.data(), data_ + offset, count);
    return count;
  }

 private:
  const std::uint8_t* const data_;
  const std::size_t size_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 1) return 0;
  const auto device = std::make_shared<InputDevice>(data + 1, size - 1);
  const auto files = data[0] % 2 == 0 ? mapbroker::backing::ReadRomfs(device) : mapbroker::backing::ReadCramfs(device);
  if (!files.ok()) return 0;
  std::vector<std::byte> page(mapbroker::nommu::kPageSize);
  for (const auto& [path, file] : *files) {
    // The beginning and the end: what lies between is alike.
    for (const std::uint64_t at : {std::uint64_t{0}, file->size() / 2, file->size() - 1}) {
      if (at < file->size()) file->Read(at, page).IgnoreError();
    }
    file->PlaceOf(0, 4);
  }
  return 0;
}
