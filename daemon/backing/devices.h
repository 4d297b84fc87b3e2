// All devices, by name. Their names begin with "dev:/".
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/btree_map.h"
#include "absl/status/statusor.h"
#include "daemon/backing/device.h"
#include "daemon/record.pb.h"
#include "shm_backend/ledger.h"
#include "shm_backend/mutex.h"

namespace mapbroker::backing {

// st_dev of devices; see kRamDevice.
inline constexpr std::uint64_t kDeviceDevice = std::uint64_t{2} << 44;
// The same of what a driver's process maps of its own device's memory.
inline constexpr std::uint64_t kDriverMemoryDevice = std::uint64_t{4} << 44;

struct DeviceInfo {
  FileStat stat;
  std::string kind;
  nommu::Capabilities capabilities = 0;
  std::map<std::string, std::string> properties;
};

// Thread-safe. As among ram files, everybody may make a device and only its owner and root may remove it.
class Devices {
 public:
  // `ledger`: where they are recorded, null for nowhere; it outlives all devices.
  Devices(const DeviceEnvironment& environment, shm::Ledger* ledger) : environment_(environment), ledger_(ledger) {}

  // EEXIST; EINVAL for a bad name, an unknown kind or a bad option; what the kind says (ENOMEM, EPERM); ENOSPC: it
  // cannot be recorded.
  absl::Status Create(const DeviceSpec& spec);
  // ENOENT, EPERM, ENOSPC. Who has it open or mapped keeps it.
  absl::Status Remove(const std::string& name, const Credentials& who);
  // open(2): O_ACCMODE and O_PATH. ENOENT, EACCES, EPERM.
  absl::StatusOr<std::shared_ptr<Backing>> Open(const std::string& name, int flags, const Credentials& who) const;
  // The device, whoever asks. ENOENT.
  struct Found {
    DeviceInfo info;  // its inode is the device's number
    std::shared_ptr<Device> device;
  };
  absl::StatusOr<Found> Look(const std::string& name) const;
  // A device that is made already. EEXIST; EINVAL for a bad name; ENOSPC.
  absl::StatusOr<Found> Add(const DeviceSpec& spec, std::shared_ptr<Device> device);
  // Records anew what the device says of itself. ENOENT, ENOSPC.
  absl::Status Update(const std::string& name);
  // Removes the name if it is this device's.
  void Withdraw(const std::string& name, const Device& device);
  // The device, to be used by the daemon itself: for images. ENOENT, EACCES unless `who` may read it.
  absl::StatusOr<Found> Find(const std::string& name, const Credentials& who) const;
  std::vector<DeviceInfo> List(const std::string& prefix) const;
  // Flash: ENOTTY for others, EACCES unless `who` may write.
  absl::Status Erase(const std::string& name, std::uint64_t offset, std::uint64_t length, const Credentials& who) const;

  // Makes again what was recorded; a device of the kind "driver" is handed over. What had been removed and is not taken
  // up by FindRestored until EndRestoring goes then. DataLoss.
  absl::Status Restore(std::uint64_t number, const record::Device& recorded, std::shared_ptr<Device> driver = nullptr);
  absl::StatusOr<Found> FindRestored(std::uint64_t number) const;
  // Null if there is no such device.
  std::shared_ptr<Backing> Reopen(const record::File& recorded) const;
  void EndRestoring();

 private:
  struct Entry {
    DeviceSpec spec;
    std::uint64_t inode = 0;
    std::shared_ptr<Device> device;
    std::shared_ptr<Charge> existence;  // a page, so that devices without memory are not free
  };

  absl::StatusOr<Entry> Get(const std::string& name, const Credentials& who, unsigned wanted) const;
  static DeviceInfo InfoOf(const Entry& entry);
  std::shared_ptr<Device> Recorded(std::shared_ptr<Device> device, std::uint64_t number) const;
  absl::Status Record(const Entry& entry, bool removed) const;

  const DeviceEnvironment environment_;
  shm::Ledger* const ledger_;
  mutable shm::Mutex mutex_;
  std::uint64_t last_inode_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::btree_map<std::string, Entry> devices_ ABSL_GUARDED_BY(mutex_);
  absl::btree_map<std::uint64_t, Entry> restored_ ABSL_GUARDED_BY(mutex_);  // by number, until EndRestoring
};

}  // namespace mapbroker::backing
