// D4: cramfs images as mkfs.cramfs makes them, little-endian. A file is a list of blocks of a page, each inflated by
// zlib or, with extended block pointers, stored as it is.
#include <sys/stat.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "daemon/backing/image.h"
#include "daemon/nommu/refusal.h"

namespace mapbroker::backing {
namespace {

using nommu::kPageSize;
using nommu::PagesOf;
using nommu::Refuse;

constexpr std::uint32_t kMagic = 0x28cd3d45;
constexpr std::uint64_t kSumPlace = 32;   // of the checksum in the superblock
constexpr std::uint64_t kRootInode = 64;  // its place in the superblock
constexpr std::uint64_t kInodeBytes = 12;
constexpr std::uint64_t kSuperblockBytes = kRootInode + kInodeBytes;
// Superblock flags.
constexpr std::uint32_t kFsidVersion2 = 0x1, kExtendedPointers = 0x800;
// Bits of a block pointer, where pointers are extended.
constexpr std::uint32_t kUncompressed = 0x80000000, kDirectPointer = 0x40000000;
constexpr std::uint32_t kPointerBits = kUncompressed | kDirectPointer;
constexpr unsigned kDirectShift = 2;
// zlib makes a block that cannot be compressed a little longer; twice a page is more than it ever does.
constexpr std::uint64_t kMaxBlock = 2 * kPageSize;

absl::Status Broken(std::uint64_t offset, const std::string& what) {
  return Refuse(EIO, "D4", absl::StrCat("the cramfs image is broken at byte ", offset, ": ", what));
}

// A device as an image: numbers and bytes, within its size.
class Source {
 public:
  explicit Source(std::shared_ptr<Device> device) : device_(std::move(device)), size_(device_->size()) {}

  std::uint64_t size() const { return size_; }
  void Limit(std::uint64_t size) { size_ = size; }
  absl::Status Read(std::uint64_t offset, std::span<std::byte> into) const {
    if (offset > size_ || into.size() > size_ - offset) return Broken(offset, "it goes past the end of the image");
    const auto read = device_->Read(offset, into);
    if (!read.ok()) return read.status();
    return *read == into.size() ? absl::OkStatus() : Broken(offset, "the device ends there");
  }
  template <typename Number>
  absl::StatusOr<Number> NumberAt(std::uint64_t offset) const {
    std::array<std::byte, sizeof(Number)> bytes;
    if (absl::Status status = Read(offset, bytes); !status.ok()) return status;
    Number number = 0;
    for (std::size_t i = sizeof(Number); i-- > 0;) {
      number = static_cast<Number>(number << 8 | std::to_integer<Number>(bytes[i]));
    }
    return number;
  }

 private:
  const std::shared_ptr<Device> device_;
  std::uint64_t size_;
};

class CramfsFile final : public ImageFile {
 public:
  CramfsFile(Source source, std::uint64_t pointers, std::uint64_t size, mode_t mode, bool extended)
      : source_(std::move(source)), pointers_(pointers), size_(size), mode_(mode), extended_(extended) {}

  std::uint64_t size() const override { return size_; }
  mode_t mode() const override { return mode_; }

  absl::StatusOr<std::size_t> Read(std::uint64_t offset, std::span<std::byte> into) const override {
    into = into.first(std::min<std::uint64_t>(into.size(), size_ - offset));
    std::array<std::byte, kPageSize> block;
    for (std::size_t done = 0; done < into.size();) {
      const std::uint64_t at = offset + done;
      if (absl::Status status = ReadBlock(at / kPageSize, block); !status.ok()) return status;
      const std::size_t part = std::min<std::uint64_t>(into.size() - done, kPageSize - at % kPageSize);
      std::memcpy(into.data() + done, block.data() + at % kPageSize, part);
      done += part;
    }
    return into.size();
  }

  std::optional<std::uint64_t> PlaceOf(std::uint64_t page, std::uint64_t pages) const override {
    std::optional<std::uint64_t> start;
    for (std::uint64_t i = 0; i < pages; ++i) {
      const auto pointer = PointerOf(page + i);
      if (!extended_ || !pointer.ok() || (*pointer & kPointerBits) != kPointerBits) return std::nullopt;
      const std::uint64_t place = std::uint64_t{*pointer & ~kPointerBits} << kDirectShift;
      if (i == 0) start = place;
      if (place != *start + i * kPageSize) return std::nullopt;
    }
    return start;
  }

 private:
  struct Extent {
    std::uint64_t start = 0, length = 0;
    bool compressed = true;
  };

  std::uint64_t blocks() const { return PagesOf(size_); }
  absl::StatusOr<std::uint32_t> PointerOf(std::uint64_t block) const {
    return source_.NumberAt<std::uint32_t>(pointers_ + block * 4);
  }
  // A compressed block that is pointed at directly is preceded by its length.
  absl::StatusOr<Extent> DirectBlock(std::uint32_t pointer) const {
    const std::uint64_t start = std::uint64_t{pointer & ~kPointerBits} << kDirectShift;
    if ((pointer & kUncompressed) != 0) return Extent{start, kPageSize, false};
    const auto length = source_.NumberAt<std::uint16_t>(start);
    if (!length.ok()) return length.status();
    return Extent{start + 2, *length, true};
  }

  absl::StatusOr<Extent> ExtentOf(std::uint64_t block) const {
    const auto pointer = PointerOf(block);
    if (!pointer.ok()) return pointer.status();
    if (extended_ && (*pointer & kDirectPointer) != 0) {
      absl::StatusOr<Extent> extent = DirectBlock(*pointer);
      if (extent.ok() && !extent->compressed && block + 1 == blocks() && size_ % kPageSize != 0) {
        extent->length = size_ % kPageSize;
      }
      return extent;
    }
    // The pointer is where the block ends; it begins where the one before it does, or after the pointers.
    std::uint64_t start = pointers_ + blocks() * 4;
    if (block > 0) {
      const auto before = PointerOf(block - 1);
      if (!before.ok()) return before.status();
      start = *before;
      if (extended_ && (*before & kDirectPointer) != 0) {
        const auto extent = DirectBlock(*before);
        if (!extent.ok()) return extent.status();
        start = extent->start + extent->length;
      } else if (extended_) {
        start &= ~std::uint64_t{kPointerBits};
      }
    }
    const std::uint64_t end = extended_ ? *pointer & ~kPointerBits : *pointer;
    if (end < start) return Broken(pointers_ + block * 4, "a block ends before it begins");
    return Extent{start, end - start, !(extended_ && (*pointer & kUncompressed) != 0)};
  }

  absl::Status ReadBlock(std::uint64_t number, std::span<std::byte, kPageSize> block) const {
    std::fill(block.begin(), block.end(), std::byte{0});
    const auto extent = ExtentOf(number);
    if (!extent.ok()) return extent.status();
    if (extent->length == 0) return absl::OkStatus();  // a hole
    if (extent->length > (extent->compressed ? kMaxBlock : kPageSize)) {
      return Broken(extent->start, "a block is longer than it can be");
    }
    if (!extent->compressed) return source_.Read(extent->start, block.first(extent->length));
    std::array<std::byte, kMaxBlock> deflated;
    const auto bytes = std::span(deflated).first(extent->length);
    if (absl::Status status = source_.Read(extent->start, bytes); !status.ok()) return status;
    uLongf length = kPageSize;
    const int result = uncompress(reinterpret_cast<Bytef*>(block.data()), &length,
                                  reinterpret_cast<const Bytef*>(bytes.data()), bytes.size());
    return result == Z_OK ? absl::OkStatus() : Broken(extent->start, "a block cannot be inflated");
  }

  const Source source_;
  const std::uint64_t pointers_, size_;
  const mode_t mode_;
  const bool extended_;
};

struct Inode {
  std::uint32_t mode = 0;
  std::uint64_t size = 0, name_length = 0, offset = 0;  // bytes
};

class Reader {
 public:
  explicit Reader(const std::shared_ptr<Device>& device) : source_(device) {}

  absl::StatusOr<ImageFiles> Read() {
    if (absl::Status status = ReadSuperblock(); !status.ok()) return status;
    const auto root = InodeAt(kRootInode);
    if (!root.ok()) return root.status();
    if ((root->mode & S_IFMT) != S_IFDIR) return Broken(kRootInode, "its root is no directory");
    if (absl::Status status = ReadDirectory(*root, "", 0); !status.ok()) return status;
    return std::move(files_);
  }

 private:
  absl::Status ReadSuperblock() {
    std::vector<std::byte> head(kSuperblockBytes);
    const auto magic = source_.NumberAt<std::uint32_t>(0);
    if (!magic.ok() || *magic != kMagic || !source_.Read(0, head).ok() ||
        std::memcmp(head.data() + 16, "Compressed ROMFS", 16) != 0) {
      return Refuse(EINVAL, "D4", "the device holds no cramfs image of this byte order");
    }
    const std::uint32_t size = *source_.NumberAt<std::uint32_t>(4), flags = *source_.NumberAt<std::uint32_t>(8);
    extended_ = (flags & kExtendedPointers) != 0;
    if ((flags & kFsidVersion2) == 0) return absl::OkStatus();  // the old form states neither size nor checksum
    if (size < kSuperblockBytes || size > source_.size()) {
      return Broken(4, absl::StrCat("it states ", size, " bytes, the device has ", source_.size()));
    }
    source_.Limit(size);
    const std::uint32_t sum = *source_.NumberAt<std::uint32_t>(kSumPlace);
    return sum == 0 ? absl::OkStatus() : CheckSum(sum);  // some tools state none
  }

  // Of the whole image, with zero in the place of the checksum itself.
  absl::Status CheckSum(std::uint32_t stated) const {
    constexpr std::uint64_t kChunk = 1 << 16;
    std::vector<std::byte> chunk;
    uLong sum = crc32(0, nullptr, 0);
    for (std::uint64_t at = 0; at < source_.size(); at += kChunk) {
      chunk.resize(std::min(kChunk, source_.size() - at));
      if (absl::Status status = source_.Read(at, chunk); !status.ok()) return status;
      if (at == 0) std::fill_n(chunk.begin() + kSumPlace, 4, std::byte{0});
      sum = crc32(sum, reinterpret_cast<const Bytef*>(chunk.data()), static_cast<uInt>(chunk.size()));
    }
    return sum == stated ? absl::OkStatus() : Broken(kSumPlace, "the checksum is wrong");
  }

  absl::StatusOr<Inode> InodeAt(std::uint64_t offset) const {
    std::array<std::uint32_t, 3> words;
    for (std::size_t i = 0; i < words.size(); ++i) {
      const auto word = source_.NumberAt<std::uint32_t>(offset + i * 4);
      if (!word.ok()) return word.status();
      words[i] = *word;
    }
    return Inode{.mode = words[0] & 0xffff,
                 .size = words[1] & 0xffffff,
                 .name_length = (words[2] & 0x3f) * 4,
                 .offset = std::uint64_t{words[2] >> 6} * 4};
  }

  absl::Status ReadDirectory(const Inode& directory, const std::string& path, std::size_t depth) {
    if (depth > kMaxImageDepth) return Broken(directory.offset, "directories are nested too deeply");
    for (std::uint64_t at = directory.offset, end = directory.offset + directory.size; at < end;) {
      if (++entries_ > kMaxImageFiles) return Broken(at, "it holds too many files");
      const auto inode = InodeAt(at);
      if (!inode.ok()) return inode.status();
      std::string name(inode->name_length, '\0');
      if (absl::Status status = source_.Read(at + kInodeBytes, std::as_writable_bytes(std::span(name))); !status.ok()) {
        return status;
      }
      name.resize(std::min(name.find('\0'), name.size()));
      if (name.empty() || name.find('/') != std::string::npos) return Broken(at, "a file has no proper name");
      const std::string full = path.empty() ? name : path + "/" + name;
      if ((inode->mode & S_IFMT) == S_IFDIR) {
        if (absl::Status status = ReadDirectory(*inode, full, depth + 1); !status.ok()) return status;
      } else if ((inode->mode & S_IFMT) == S_IFREG) {
        files_[full] = std::make_shared<CramfsFile>(source_, inode->offset, inode->size, inode->mode & 0777, extended_);
      }
      at += kInodeBytes + inode->name_length;
    }
    return absl::OkStatus();
  }

  Source source_;
  bool extended_ = false;
  std::size_t entries_ = 0;
  ImageFiles files_;
};

}  // namespace

absl::StatusOr<ImageFiles> ReadCramfs(const std::shared_ptr<Device>& device) { return Reader(device).Read(); }

}  // namespace mapbroker::backing
