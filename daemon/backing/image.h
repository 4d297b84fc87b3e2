// File system images that lie on a device: read-only trees of files, parsed as hostile input.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "daemon/backing/device.h"

namespace mapbroker::backing {

// A regular file of an image. Thread-safe.
class ImageFile {
 public:
  virtual ~ImageFile() = default;
  virtual std::uint64_t size() const = 0;  // bytes
  virtual mode_t mode() const = 0;         // permission bits
  // REQUIRES: offset < size(); at most size() - offset bytes are wanted. EIO where the image contradicts itself.
  virtual absl::StatusOr<std::size_t> Read(std::uint64_t offset, std::span<std::byte> into) const = 0;
  // Where on the device the file's pages from `page` lie as they are, one after the other; nullopt if they do not.
  virtual std::optional<std::uint64_t> PlaceOf(std::uint64_t page, std::uint64_t pages) const = 0;
};

// By path, without a slash at the beginning.
using ImageFiles = std::map<std::string, std::shared_ptr<ImageFile>>;

// Files in one image; more is a mistake or an attack. So is a tree that is deeper than paths are long.
inline constexpr std::size_t kMaxImageFiles = 65536;
inline constexpr std::size_t kMaxImageDepth = 64;

// D3, D4. EINVAL where the bytes are no such image, EIO where they contradict themselves; the sentence says where.
absl::StatusOr<ImageFiles> ReadRomfs(const std::shared_ptr<Device>& device);
absl::StatusOr<ImageFiles> ReadCramfs(const std::shared_ptr<Device>& device);

}  // namespace mapbroker::backing
