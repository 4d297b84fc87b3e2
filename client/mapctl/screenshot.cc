// mapctl screenshot: what a frame buffer shows, as a PNG file.
#include <fcntl.h>
#include <png.h>
#include <sys/mman.h>

#include <cstdint>
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

absl::StatusOr<Geometry> GeometryOf(const DeviceInfo& info) {
  Geometry geometry;
  const auto number = [&](const char* name, std::uint32_t& value) {
    const auto found = info.properties.find(name);
    return found != info.properties.end() && absl::SimpleAtoi(found->second, &value);
  };
  if (info.kind != "framebuffer" || !number("width", geometry.width) || !number("height", geometry.height) ||
      !number("stride", geometry.stride) || info.size < std::uint64_t{geometry.stride} * geometry.height) {
    return absl::FailedPreconditionError(absl::StrCat(info.name, " is no frame buffer"));
  }
  geometry.format = info.properties.at("format");
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
