// D3: romfs images as genromfs makes them. Numbers are big-endian, everything is aligned to 16 bytes, and a file's data
// lie in one piece.
#include <algorithm>
#include <cerrno>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "daemon/backing/image.h"
#include "daemon/nommu/refusal.h"

namespace mapbroker::backing {
namespace {

using nommu::kPageSize;
using nommu::Refuse;

constexpr std::uint64_t kAlign = 16;
constexpr std::uint64_t kHeaderBytes = 16;     // of a file, before its name
constexpr std::uint64_t kChecksummed = 512;    // bytes of the image that its checksum covers
constexpr std::uint64_t kMaxNameBytes = 1024;  // far more than any name; a longer one has no end

absl::Status Broken(std::uint64_t offset, const std::string& what) {
  return Refuse(EIO, "D3", absl::StrCat("the romfs image is broken at byte ", offset, ": ", what));
}

class RomfsFile final : public ImageFile {
 public:
  RomfsFile(std::shared_ptr<Device> device, std::uint64_t start, std::uint64_t size, bool executable)
      : device_(std::move(device)), start_(start), size_(size), executable_(executable) {}

  std::uint64_t size() const override { return size_; }
  mode_t mode() const override { return executable_ ? 0555 : 0444; }
  absl::StatusOr<std::size_t> Read(std::uint64_t offset, std::span<std::byte> into) const override {
    return device_->Read(start_ + offset, into.first(std::min<std::uint64_t>(into.size(), size_ - offset)));
  }
  std::optional<std::uint64_t> PlaceOf(std::uint64_t page, std::uint64_t) const override {
    return start_ + page * kPageSize;
  }

 private:
  const std::shared_ptr<Device> device_;
  const std::uint64_t start_, size_;
  const bool executable_;
};

class Reader {
 public:
  explicit Reader(const std::shared_ptr<Device>& device) : device_(device) {}

  absl::StatusOr<ImageFiles> Read() {
    if (absl::Status status = ReadSuperblock(); !status.ok()) return status;
    if (absl::Status status = ReadDirectory(first_header_, "", 0); !status.ok()) return status;
    // Other names of regular files; of anything else there is nothing to map.
    for (const auto& [path, header] : links_) {
      if (const auto file = regular_.find(header); file != regular_.end()) files_[path] = file->second;
    }
    return std::move(files_);
  }

 private:
  absl::StatusOr<std::vector<std::byte>> Bytes(std::uint64_t offset, std::uint64_t count) const {
    if (offset > size_ || count > size_ - offset) return Broken(offset, "it goes past the end of the image");
    std::vector<std::byte> bytes(count);
    const auto read = device_->Read(offset, bytes);
    if (!read.ok()) return read.status();
    if (*read != count) return Broken(offset, "the device ends there");
    return bytes;
  }
  static std::uint32_t Number(std::span<const std::byte> bytes, std::size_t at) {
    std::uint32_t number = 0;
    for (std::size_t i = at; i < at + 4; ++i) number = number << 8 | std::to_integer<std::uint32_t>(bytes[i]);
    return number;
  }
  // Of whole 32-bit numbers; 0 where the checksum is right.
  static std::uint32_t Sum(std::span<const std::byte> bytes) {
    std::uint32_t sum = 0;
    for (std::size_t at = 0; at + 4 <= bytes.size(); at += 4) sum += Number(bytes, at);
    return sum;
  }

  // The name at `offset` and the bytes up to the next multiple of 16 after its end.
  absl::StatusOr<std::pair<std::string, std::uint64_t>> NameAt(std::uint64_t offset) const {
    std::string name;
    for (std::uint64_t at = offset;; at += kAlign) {
      const auto bytes = Bytes(at, kAlign);
      if (!bytes.ok()) return bytes.status();
      for (const std::byte byte : *bytes) {
        if (byte == std::byte{0}) return std::pair(name, at + kAlign);
        name.push_back(static_cast<char>(byte));
      }
      if (name.size() > kMaxNameBytes) return Broken(offset, "a name has no end");
    }
  }

  absl::Status ReadSuperblock() {
    size_ = device_->size();
    const auto head = Bytes(0, kHeaderBytes);
    if (!head.ok() || Number(*head, 0) != 0x2d726f6d || Number(*head, 4) != 0x3166732d) {
      return Refuse(EINVAL, "D3", "the device holds no romfs image: it does not begin with -rom1fs-");
    }
    const std::uint64_t stated = Number(*head, 8);
    if (stated < kHeaderBytes) return Broken(8, "it states fewer bytes than its beginning has");
    if (stated > size_) return Broken(8, absl::StrCat("it states ", stated, " bytes, the device has ", size_));
    size_ = stated;
    const auto checked = Bytes(0, std::min(kChecksummed, size_));
    if (!checked.ok()) return checked.status();
    if (Sum(*checked) != 0) return Broken(12, "the checksum is wrong");
    const auto volume = NameAt(kHeaderBytes);
    if (!volume.ok()) return volume.status();
    first_header_ = volume->second;
    return absl::OkStatus();
  }

  absl::Status ReadDirectory(std::uint64_t offset, const std::string& path, std::size_t depth) {
    if (depth > kMaxImageDepth) return Broken(offset, "directories are nested too deeply");
    while (offset != 0) {
      if (!seen_.insert(offset).second) return Broken(offset, "a list of files runs in a circle");
      if (seen_.size() > kMaxImageFiles) return Broken(offset, "it holds too many files");
      const auto next = ReadEntry(offset, path, depth);
      if (!next.ok()) return next.status();
      offset = *next;
    }
    return absl::OkStatus();
  }

  // The offset of the directory's next entry, 0 for none.
  absl::StatusOr<std::uint64_t> ReadEntry(std::uint64_t offset, const std::string& path, std::size_t depth) {
    enum Type { kHardLink = 0, kDirectory = 1, kRegular = 2 };
    const auto head = Bytes(offset, kHeaderBytes);
    if (!head.ok()) return head.status();
    const auto name = NameAt(offset + kHeaderBytes);
    if (!name.ok()) return name.status();
    const auto& [text, data] = *name;
    const auto whole = Bytes(offset, data - offset);
    if (!whole.ok()) return whole.status();
    if (Sum(*whole) != 0) return Broken(offset, "the checksum of a file's header is wrong");

    const std::uint32_t next = Number(*head, 0), info = Number(*head, 4);
    const std::uint64_t size = Number(*head, 8);
    const std::string full = path.empty() ? text : path + "/" + text;
    if (text.empty() || text.find('/') != std::string::npos) return Broken(offset, "a file has no proper name");
    switch (next & 7) {
      case kDirectory:
        if (text != "." && text != "..") {
          if (absl::Status status = ReadDirectory(info & ~15u, full, depth + 1); !status.ok()) return status;
        }
        break;
      case kRegular:
        if (data > size_ || size > size_ - data) return Broken(offset, "a file goes past the end of the image");
        files_[full] = regular_[offset] = std::make_shared<RomfsFile>(device_, data, size, (next & 8) != 0);
        break;
      case kHardLink:
        links_[full] = info;
        break;
      default:  // symbolic links and special files: nothing to map
        break;
    }
    return next & ~15u;
  }

  const std::shared_ptr<Device>& device_;
  std::uint64_t size_ = 0;
  std::uint64_t first_header_ = 0;
  std::set<std::uint64_t> seen_;
  ImageFiles files_;
  std::map<std::string, std::uint64_t> links_;                   // the offset of the linked file's header, by path
  std::map<std::uint64_t, std::shared_ptr<ImageFile>> regular_;  // by the offset of its header
};

}  // namespace

absl::StatusOr<ImageFiles> ReadRomfs(const std::shared_ptr<Device>& device) { return Reader(device).Read(); }

}  // namespace mapbroker::backing
