// D3, D4: the files of images that lie on devices. Their names are "mnt:/MOUNT/PATH".
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/btree_map.h"
#include "absl/status/statusor.h"
#include "daemon/backing/devices.h"
#include "daemon/backing/image.h"
#include "shm_backend/mutex.h"

namespace mapbroker::backing {

inline constexpr char kMountScheme[] = "mnt:";

// st_dev of files of images; see kRamDevice. Each mount has its own.
inline constexpr std::uint64_t kMountDevice = std::uint64_t{3} << 44;

// Thread-safe. The files are read-only. Whoever mounts owns the mount; everybody may open what an image's permission
// bits let others read, as if all its files were root's.
class Mounts {
 public:
  // `devices` outlives it.
  explicit Mounts(const Devices& devices) : devices_(devices) {}

  // Mounts the image on a device as "mnt:/NAME". `type`: romfs, cramfs, or empty for whichever it is. EEXIST, EINVAL,
  // EIO where the image is broken, and as Devices::Find.
  absl::Status Mount(const std::string& name, const std::string& device, const std::string& type,
                     const Credentials& who);
  // ENOENT, EPERM. Files that are open or mapped stay.
  absl::Status Unmount(const std::string& name, const Credentials& who);
  // ENOENT, EACCES, EROFS for writing.
  absl::StatusOr<std::shared_ptr<Backing>> Open(const std::string& name, int flags, const Credentials& who) const;
  absl::StatusOr<FileStat> Stat(const std::string& name) const;
  // At most `most` files whose name begins with `prefix` and comes after `after`, by name.
  std::vector<FileStat> List(const std::string& prefix, const std::string& after, std::size_t most) const;

 private:
  struct Entry {
    FileStat stat;
    nommu::FileId id;
    std::shared_ptr<ImageFile> file;
    std::shared_ptr<Device> device;
  };
  struct Mounted {
    uid_t owner = 0;
    std::vector<std::string> files;
  };
  class MountedFile;

  absl::StatusOr<Entry> Find(const std::string& name) const;

  const Devices& devices_;
  mutable shm::Mutex mutex_;
  std::uint64_t mounts_made_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::btree_map<std::string, Mounted> mounts_ ABSL_GUARDED_BY(mutex_);
  absl::btree_map<std::string, Entry> files_ ABSL_GUARDED_BY(mutex_);  // by full name
};

}  // namespace mapbroker::backing
