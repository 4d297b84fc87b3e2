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
  // `devices` and `ledger`, where mounts are recorded (null for nowhere), outlive it.
  Mounts(const Devices& devices, shm::Ledger* ledger) : devices_(devices), ledger_(ledger) {}

  // Mounts the image on a device as "mnt:/NAME". `type`: romfs, cramfs, or empty for whichever it is. EEXIST, EINVAL,
  // EIO where the image is broken, ENOSPC where the mount cannot be recorded, and as Devices::Find.
  absl::Status Mount(const std::string& name, const std::string& device, const std::string& type,
                     const Credentials& who);
  // ENOENT, EPERM. Files that are open or mapped stay.
  absl::Status Unmount(const std::string& name, const Credentials& who);
  // ENOENT, EACCES, EROFS for writing.
  absl::StatusOr<std::shared_ptr<Backing>> Open(const std::string& name, int flags, const Credentials& who) const;
  absl::StatusOr<FileStat> Stat(const std::string& name) const;
  // Whether something is mounted as `name`.
  bool Has(const std::string& name) const;
  // At most `most` files whose name begins with `prefix` and comes after `after`, by name.
  std::vector<FileStat> List(const std::string& prefix, const std::string& after, std::size_t most) const;

  // Makes a recorded mount again. EIO or EINVAL: the device does not hold the image any more that was mounted, which is
  // its owner's doing; DataLoss.
  absl::Status Restore(std::uint64_t number, const record::Mount& recorded);
  // A file that was open or mapped. Where it is not mounted any more its mappings stand, and nothing more can be read
  // of it. Null if its device does not exist.
  std::shared_ptr<Backing> Reopen(const record::File& recorded);

 private:
  struct Mounted {
    std::uint64_t number = 0;
    uid_t owner = 0;
    Devices::Found on;
    std::vector<std::string> files;
  };
  struct Entry {
    FileStat stat;
    nommu::FileId id;
    std::shared_ptr<ImageFile> file;
    std::shared_ptr<Device> device;
    std::uint64_t device_number = 0;
  };
  class MountedFile;

  absl::StatusOr<Entry> Find(const std::string& name) const;
  void Add(const std::string& name, Mounted mounted, const ImageFiles& image) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Devices& devices_;
  shm::Ledger* const ledger_;
  mutable shm::Mutex mutex_;
  std::uint64_t mounts_made_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::btree_map<std::string, Mounted> mounts_ ABSL_GUARDED_BY(mutex_);
  absl::btree_map<std::string, Entry> files_ ABSL_GUARDED_BY(mutex_);  // by full name
};

}  // namespace mapbroker::backing
