// mapctl screenshot: what a frame buffer shows, as a PNG file.
#include <fcntl.h>
#include <png.h>
#include <sys/mman.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "client/mapctl/mapctl.h"

namespace mapbroker::mapctl {
namespace {

struct Geometry {
  std::uint32_t width = 0, height = 0, stride = 0;  // pixels, rows, bytes
  std::string format;
};

// Of a frame buffer of the daemon, or of a driver that says the same of its device and need not be right.
absl::StatusOr<Geometry> GeometryOf(const DeviceInfo& info) {
  static const std::map<std::string, std::uint64_t> kPixelBytes{{"xrgb8888", 4}, {"rgb565", 2}, {"gray8", 1}};
  Geometry geometry;
  const auto text = [&](const char* name) {
    const auto found = info.properties.find(name);
    return found == info.properties.end() ? std::string() : found->second;
  };
  const auto pixel = kPixelBytes.find(text("format"));
  if (pixel == kPixelBytes.end() || !absl::SimpleAtoi(text("width"), &geometry.width) ||
      !absl::SimpleAtoi(text("height"), &geometry.height) || !absl::SimpleAtoi(text("stride"), &geometry.stride) ||
      geometry.width == 0 || geometry.height == 0 || geometry.stride < geometry.width * pixel->second ||
      info.size < std::uint64_t{geometry.stride} * geometry.height) {
    return absl::FailedPreconditionError(absl::StrCat(info.name, " is no frame buffer"));
  }
  geometry.format = pixel->first;
  return geometry;
}

// Three bytes a pixel, without gaps between rows.
std::vector<std::uint8_t> ToRgb(std::span<const std::byte> pixels, const Geometry& geometry) {
  std::vector<std::uint8_t> rgb;
  rgb.reserve(std::size_t{3} * geometry.width * geometry.height);
  const auto byte = [&](std::size_t at) { return std::to_integer<std::uint8_t>(pixels[at]); };
  for (std::size_t row = 0; row < geometry.height; ++row) {
    for (std::size_t column = 0; column < geometry.width; ++column) {
      const std::size_t begin = row * geometry.stride;
      if (geometry.format == "gray8") {
        rgb.insert(rgb.end(), 3, byte(begin + column));
      } else if (geometry.format == "rgb565") {
        const unsigned pixel = byte(begin + column * 2) | byte(begin + column * 2 + 1) << 8;
        // The highest bits again below, so that white is white.
        const auto widen = [](unsigned value, unsigned bits) {
          return static_cast<std::uint8_t>(value << (8 - bits) | value >> (2 * bits - 8));
        };
        rgb.insert(rgb.end(), {widen(pixel >> 11, 5), widen(pixel >> 5 & 63, 6), widen(pixel & 31, 5)});
      } else {
        const std::size_t at = begin + column * 4;
        rgb.insert(rgb.end(), {byte(at + 2), byte(at + 1), byte(at)});
      }
    }
  }
  return rgb;
}

absl::Status Screenshot(const std::string& name, const std::string& file, const Context& context) {
  absl::StatusOr<Client> client = context.Connect();
  if (!client.ok()) return client.status();
  const std::string device = name.rfind("dev:", 0) == 0 ? name : absl::StrCat("dev:/", name);
  const absl::StatusOr<DeviceInfo> info = client->GetDevice(device);
  if (!info.ok()) return info.status();
  const absl::StatusOr<Geometry> geometry = GeometryOf(*info);
  if (!geometry.ok()) return geometry.status();
  const absl::StatusOr<File> pixels = client->Open(device, O_RDONLY);
  if (!pixels.ok()) return pixels.status();
  absl::StatusOr<Mapping> mapping =
      client->Map({.length = info->size, .prot = PROT_READ, .flags = MAP_SHARED, .file = &*pixels});
  if (!mapping.ok()) return mapping.status();

  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  image.width = geometry->width;
  image.height = geometry->height;
  image.format = PNG_FORMAT_RGB;
  if (png_image_write_to_file(&image, file.c_str(), 0, ToRgb(mapping->bytes(), *geometry).data(), 0, nullptr) == 0) {
    return absl::FailedPreconditionError(absl::StrCat(file, ": ", image.message));
  }
  return absl::OkStatus();
}

}  // namespace

void AddScreenshot(CLI::App& program, Context& context) {
  const auto device = std::make_shared<std::string>(), file = std::make_shared<std::string>();
  CLI::App* screenshot = program.add_subcommand("screenshot", "write what a frame buffer shows to a PNG file");
  screenshot->add_option("DEVICE", *device, "the frame buffer, like dev:/fb0")->required();
  screenshot->add_option("-o,--output", *file, "the PNG file")->required();
  screenshot->callback([device, file, &context] { context.exit_status = Report(Screenshot(*device, *file, context)); });
}

}  // namespace mapbroker::mapctl
