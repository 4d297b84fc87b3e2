// D8: a frame buffer: one run of pixels, blank on creation, mapped shared and never copied.
#include "absl/strings/str_cat.h"
#include "daemon/backing/device_kinds.h"

namespace mapbroker::backing {
namespace {

// Pixels in a row and rows; more than any display has.
constexpr std::uint64_t kMostPixels = 16384;

class Framebuffer final : public MemoryDevice {
 public:
  Framebuffer(std::unique_ptr<DeviceMemory> memory, std::map<std::string, std::string> properties)
      : MemoryDevice(std::move(memory)), properties_(std::move(properties)) {}

  nommu::Capabilities capabilities() const override { return nommu::kMapDirect | nommu::kReadMap | nommu::kWriteMap; }
  std::map<std::string, std::string> Properties() const override { return properties_; }

 private:
  const std::map<std::string, std::string> properties_;
};

// Options: width and height in pixels; format (xrgb8888, rgb565 or gray8, little-endian); stride in bytes, by default a
// row's pixels.
absl::StatusOr<std::shared_ptr<Device>> Make(const DeviceSpec& spec, const DeviceEnvironment& environment) {
  DeviceOptions options(spec);
  const auto width = options.Number("width", 1, kMostPixels);
  if (!width.ok()) return width.status();
  const auto height = options.Number("height", 1, kMostPixels);
  if (!height.ok()) return height.status();
  const auto format = options.Choice("format", {"xrgb8888", "rgb565", "gray8"}, "xrgb8888");
  if (!format.ok()) return format.status();
  const std::uint64_t row = *width * (*format == "xrgb8888" ? 4 : *format == "rgb565" ? 2 : 1);
  const auto stride = options.Number("stride", row, row + 65536, row);
  if (!stride.ok()) return stride.status();
  if (absl::Status status = options.Finish(); !status.ok()) return status;
  auto memory = DeviceMemory::Make(*stride * *height, spec, environment);
  if (!memory.ok()) return memory.status();
  return std::make_shared<Framebuffer>(*std::move(memory),
                                       std::map<std::string, std::string>{{"width", absl::StrCat(*width)},
                                                                          {"height", absl::StrCat(*height)},
                                                                          {"stride", absl::StrCat(*stride)},
                                                                          {"format", *format}});
}

}  // namespace

const DeviceKind kFramebuffer{"framebuffer", Make};

}  // namespace mapbroker::backing
