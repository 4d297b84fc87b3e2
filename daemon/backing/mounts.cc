#include "daemon/backing/mounts.h"

#include <fcntl.h>
#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "daemon/backing/remembered.h"
#include "daemon/nommu/refusal.h"
#include "daemon/records.h"

namespace mapbroker::backing {
namespace {

using nommu::kPageSize;
using nommu::PagesOf;
using nommu::Refuse;

absl::StatusOr<ImageFiles> ReadImage(const std::shared_ptr<Device>& device, const std::string& type) {
  if (type == "romfs") return ReadRomfs(device);
  if (type == "cramfs") return ReadCramfs(device);
  if (!type.empty()) {
    return Refuse(EINVAL, "D", absl::StrCat("there is no image type \"", type, "\": take romfs or cramfs"));
  }
  absl::StatusOr<ImageFiles> files = ReadRomfs(device);
  // EINVAL: it is none at all, as against a broken one.
  if (nommu::ErrnoOf(files.status()) != EINVAL) return files;
  files = ReadCramfs(device);
  if (nommu::ErrnoOf(files.status()) != EINVAL) return files;
  return Refuse(EINVAL, "D", "the device holds neither a romfs nor a cramfs image");
}

absl::Status CheckName(const std::string& name) {
  const std::string scheme = absl::StrCat(kMountScheme, "/");
  if (absl::StartsWith(name, scheme) && name.size() > scheme.size() && name.size() < 256 &&
      name.find('/', scheme.size()) == std::string::npos && name.find('\0') == std::string::npos) {
    return absl::OkStatus();
  }
  return Refuse(EINVAL, "D", absl::StrCat("the name of a mount is ", scheme, " and a name without slashes"));
}

// See record.proto.
std::uint32_t FingerprintOf(const ImageFiles& image) {
  uLong fingerprint = crc32(0, nullptr, 0);
  for (const auto& [path, file] : image) {
    const auto place = file->PlaceOf(0, PagesOf(file->size()));
    const std::string line = absl::StrCat(path, "\n", file->size(), " ", static_cast<unsigned>(file->mode()), " ",
                                          place ? absl::StrCat(*place) : "-", "\n");
    fingerprint = crc32(fingerprint, reinterpret_cast<const Bytef*>(line.data()), static_cast<uInt>(line.size()));
  }
  return static_cast<std::uint32_t>(fingerprint);
}

}  // namespace

class Mounts::MountedFile final : public Backing {
 public:
  MountedFile(Entry file, int open_flags) : file_(std::move(file)), open_flags_(open_flags) {
    id = file_.id;
    if ((open_flags & O_PATH) != 0) kind = Kind::kNotOpen;
    capabilities = nommu::kMapCopy;
    // Straight out of the image where the device's memory can be mapped; never writable.
    constexpr nommu::Capabilities kOutOfImage = nommu::kMapDirect | nommu::kReadMap | nommu::kExecMap;
    if ((file_.device->capabilities() & kOutOfImage) == kOutOfImage) capabilities |= kOutOfImage;
    readable = true;
  }

  absl::StatusOr<std::uint64_t> Size() const override { return file_.file->size(); }
  absl::StatusOr<std::size_t> Read(std::uint64_t offset, std::span<std::byte> into) const override {
    if (offset >= file_.file->size()) return std::size_t{0};
    return file_.file->Read(offset, into);
  }
  std::string Path() const override { return file_.stat.name; }
  absl::StatusOr<FileStat> Stat() const override { return file_.stat; }
  absl::StatusOr<nommu::PoolAddress> GetUnmappedArea(const nommu::MapRequest& request) const override {
    const std::uint64_t page = request.offset / kPageSize, pages = request.length / kPageSize,
                        all = PagesOf(file_.file->size());
    if (page >= all || pages > all - page) {
      return Refuse(EINVAL, "S10", "the mapping goes past the end of the file, and its memory is the image's");
    }
    const auto place = file_.file->PlaceOf(page, pages);
    if (place && *place < file_.device->size() && request.length <= file_.device->size() - *place) {
      nommu::MapRequest of_device = request;
      of_device.offset = *place;
      // The flash driver's own rules for its device file do not matter here.
      of_device.flags = MAP_SHARED;
      return file_.device->GetUnmappedArea(of_device);
    }
    return Refuse(ENOSYS, "S10", "the file does not lie in the image as it is");
  }
  void Close(nommu::PoolAddress start, std::uint64_t length, bool last) const override {
    file_.device->Close(start, length, last);
  }
  bool Restored(nommu::PoolAddress start, std::uint64_t length) const override {
    return file_.device->Restored(start, length);
  }
  record::File Record() const override {
    record::File file = Backing::Record();
    file.set_kind(record::File::KIND_IMAGE);
    file.set_open_flags(static_cast<std::uint32_t>(open_flags_));
    file.set_of_device(file_.device_number);
    return file;
  }

 private:
  const Entry file_;
  const int open_flags_;
};

absl::Status Mounts::Mount(const std::string& name, const std::string& device, const std::string& type,
                           const Credentials& who) {
  if (absl::Status status = CheckName(name); !status.ok()) return status;
  const absl::StatusOr<Devices::Found> found = devices_.Find(device, who);
  if (!found.ok()) return found.status();
  const absl::StatusOr<ImageFiles> image = ReadImage(found->device, type);
  if (!image.ok()) return image.status();

  shm::MutexLock lock(mutex_);
  if (mounts_.contains(name)) return Refuse(EEXIST, "D", absl::StrCat(name, " is mounted already"));
  const std::uint64_t number = ++mounts_made_;
  if (ledger_ != nullptr) {
    record::Mount record;
    record.set_name(name);
    record.set_of_device(found->info.stat.inode);
    record.set_type(type);
    record.set_owner(who.uid);
    record.set_fingerprint(FingerprintOf(*image));
    const shm::Ledger::Change change{kMounts, shm::LedgerKey({number}), record.SerializeAsString()};
    if (!ledger_->Apply({&change, 1}).ok()) return CannotRecord("the mount", "D");
  }
  Add(name, Mounted{.number = number, .owner = who.uid, .on = *found, .files = {}}, *image);
  return absl::OkStatus();
}

absl::Status Mounts::Restore(std::uint64_t number, const record::Mount& recorded) {
  const absl::StatusOr<Devices::Found> found = devices_.FindRestored(recorded.of_device());
  if (!found.ok()) return found.status();
  shm::MutexLock lock(mutex_);
  mounts_made_ = std::max(mounts_made_, number);
  if (mounts_.contains(recorded.name())) return Contradiction(absl::StrCat("two mounts of ", recorded.name()));
  const absl::StatusOr<ImageFiles> image = ReadImage(found->device, recorded.type());
  if (!image.ok()) return image.status();
  if (FingerprintOf(*image) != recorded.fingerprint()) {
    return Refuse(EIO, "D", absl::StrCat("the image on ", found->info.stat.name, " is another than was mounted"));
  }
  Add(recorded.name(), Mounted{.number = number, .owner = recorded.owner(), .on = *found, .files = {}}, *image);
  return absl::OkStatus();
}

std::shared_ptr<Backing> Mounts::Reopen(const record::File& recorded) {
  const absl::StatusOr<Devices::Found> found = devices_.FindRestored(recorded.of_device());
  if (!found.ok()) return nullptr;
  const nommu::FileId id{recorded.device(), recorded.inode()};
  shm::MutexLock lock(mutex_);
  // Its number is not given again, also if the mount has gone.
  if (id.device > kMountDevice) mounts_made_ = std::max(mounts_made_, id.device - kMountDevice);
  const auto file = files_.find(recorded.path());
  if (file == files_.end() || file->second.id != id) return Remember(recorded, found->device);
  return std::make_shared<MountedFile>(file->second, static_cast<int>(recorded.open_flags()));
}

void Mounts::Add(const std::string& name, Mounted mounted, const ImageFiles& image) {
  std::uint64_t inode = 0;
  for (const auto& [path, file] : image) {
    const std::string full = absl::StrCat(name, "/", path);
    const FileStat stat{.name = full,
                        .inode = ++inode,
                        .uid = 0,
                        .gid = 0,
                        .mode = file->mode(),
                        .size = file->size(),
                        .allocated = 0,
                        .runs = file->PlaceOf(0, PagesOf(file->size())) ? 1u : 0u};
    files_[full] =
        Entry{stat, {kMountDevice + mounted.number, inode}, file, mounted.on.device, mounted.on.info.stat.inode};
    mounted.files.push_back(full);
  }
  mounts_[name] = std::move(mounted);
}

absl::Status Mounts::Unmount(const std::string& name, const Credentials& who) {
  shm::MutexLock lock(mutex_);
  const auto found = mounts_.find(name);
  if (found == mounts_.end()) return Refuse(ENOENT, "D", absl::StrCat("nothing is mounted as ", name));
  if (!who.privileged() && who.uid != found->second.owner) {
    return Refuse(EPERM, "D", absl::StrCat(name, " was mounted by user ", found->second.owner));
  }
  if (ledger_ != nullptr) {
    const shm::Ledger::Change change{kMounts, shm::LedgerKey({found->second.number})};
    if (!ledger_->Apply({&change, 1}).ok()) return CannotRecord("the unmounting", "D");
  }
  for (const std::string& file : found->second.files) files_.erase(file);
  mounts_.erase(found);
  return absl::OkStatus();
}

bool Mounts::Has(const std::string& name) const {
  shm::MutexLock lock(mutex_);
  return mounts_.contains(name);
}

absl::StatusOr<Mounts::Entry> Mounts::Find(const std::string& name) const {
  shm::MutexLock lock(mutex_);
  const auto found = files_.find(name);
  if (found == files_.end()) {
    return Refuse(ENOENT, "D", absl::StrCat("there is no ", name, ": see `mapctl ls`"));
  }
  return found->second;
}

absl::StatusOr<std::shared_ptr<Backing>> Mounts::Open(const std::string& name, int flags,
                                                      const Credentials& who) const {
  const absl::StatusOr<Entry> file = Find(name);
  if (!file.ok()) return file.status();
  if ((flags & O_ACCMODE) != O_RDONLY || (flags & O_TRUNC) != 0) {
    return Refuse(EROFS, "D", "the files of an image cannot be written to: open it O_RDONLY");
  }
  if (!MayAccess(who, file->stat.uid, file->stat.gid, file->stat.mode, kRead)) {
    return Refuse(EACCES, "D", absl::StrCat("the image does not let others read ", name));
  }
  return std::make_shared<MountedFile>(*file, flags);
}

absl::StatusOr<FileStat> Mounts::Stat(const std::string& name) const {
  const absl::StatusOr<Entry> file = Find(name);
  if (!file.ok()) return file.status();
  return file->stat;
}

std::vector<FileStat> Mounts::List(const std::string& prefix, const std::string& after, std::size_t most) const {
  std::vector<FileStat> listed;
  shm::MutexLock lock(mutex_);
  for (auto at = after.empty() ? files_.lower_bound(prefix) : files_.upper_bound(after);
       at != files_.end() && listed.size() < most && absl::StartsWith(at->first, prefix); ++at) {
    listed.push_back(at->second.stat);
  }
  return listed;
}

}  // namespace mapbroker::backing
