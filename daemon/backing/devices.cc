#include "daemon/backing/devices.h"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "daemon/nommu/refusal.h"
#include "daemon/records.h"

namespace mapbroker::backing {
namespace {

using nommu::Refuse;

// Bytes of a name, "dev:" included; as long as one of the host's may be.
constexpr std::size_t kMaxName = 255;

absl::Status NoSuchDevice(const std::string& name) {
  return Refuse(ENOENT, "D", absl::StrCat("there is no device ", name, ": see `mapctl device ls`"));
}

absl::Status Exists(const std::string& name) {
  return Refuse(EEXIST, "D", absl::StrCat("the device ", name, " exists"));
}

absl::Status CheckName(const std::string& name) {
  const std::string scheme = absl::StrCat(kDeviceScheme, "/");
  if (absl::StartsWith(name, scheme) && name.size() > scheme.size() && name.size() <= kMaxName &&
      name.find('/', scheme.size()) == std::string::npos && name.find('\0') == std::string::npos) {
    return absl::OkStatus();
  }
  return Refuse(EINVAL, "D", absl::StrCat("the name of a device is ", scheme, " and a name without slashes"));
}

// One open file description of a device.
class DeviceFile final : public Backing {
 public:
  DeviceFile(std::shared_ptr<Device> device, const FileStat& stat, int open_flags)
      : device_(std::move(device)), stat_(stat), open_flags_(open_flags) {
    id = {.device = kDeviceDevice, .inode = stat.inode};
    kind = (open_flags & O_PATH) != 0 ? Kind::kNotOpen : device_->file_kind();
    capabilities = device_->capabilities();
    shareable = device_->shareable();
    readable = (open_flags & O_ACCMODE) != O_WRONLY;
    writable = (open_flags & O_ACCMODE) != O_RDONLY;
  }

  absl::StatusOr<std::uint64_t> Size() const override { return device_->size(); }
  absl::StatusOr<std::size_t> Read(std::uint64_t offset, std::span<std::byte> into) const override {
    return device_->Read(offset, into);
  }
  std::string Path() const override { return stat_.name; }
  absl::StatusOr<nommu::PoolAddress> GetUnmappedArea(const nommu::MapRequest& request) const override {
    return device_->GetUnmappedArea(request);
  }
  void Close(nommu::PoolAddress start, std::uint64_t length, bool last) const override {
    device_->Close(start, length, last);
  }
  bool Restored(nommu::PoolAddress start, std::uint64_t length) const override {
    return device_->Restored(start, length);
  }
  record::File Record() const override {
    record::File file;
    file.set_kind(record::File::KIND_DEVICE);
    file.set_of_device(stat_.inode);
    file.set_open_flags(static_cast<std::uint32_t>(open_flags_));
    return file;
  }
  absl::Status Write(std::uint64_t offset, std::span<const std::byte> from) const override {
    return device_->Write(offset, from);
  }
  absl::StatusOr<FileStat> Stat() const override { return stat_; }

 private:
  const std::shared_ptr<Device> device_;
  const FileStat stat_;
  const int open_flags_;
};

}  // namespace

absl::Status Devices::Create(const DeviceSpec& spec) {
  const DeviceKind* const kind = FindDeviceKind(spec.kind);
  if (kind == nullptr) {
    return Refuse(EINVAL, "D",
                  absl::StrCat("there is no kind of device \"", spec.kind,
                               "\": take flash, framebuffer, mem, null, ramdisk or zero"));
  }
  if (absl::Status status = CheckName(spec.name); !status.ok()) return status;
  if (Look(spec.name).ok()) return Exists(spec.name);
  // Outside the lock: memory is found and contents are read.
  absl::StatusOr<std::shared_ptr<Device>> device = kind->make(spec, environment_.For(spec.owner.uid));
  if (!device.ok()) return device.status();
  return Add(spec, *std::move(device)).status();
}

absl::StatusOr<Devices::Found> Devices::Add(const DeviceSpec& spec, std::shared_ptr<Device> device) {
  if (absl::Status status = CheckName(spec.name); !status.ok()) return status;
  absl::StatusOr<Charge> existence =
      Charge::Take(environment_.For(spec.owner.uid).payer, Resource::kBytes, nommu::kPageSize);
  if (!existence.ok()) return existence.status();
  // The device goes after the lock, if it cannot be added.
  Entry entry{spec, 0, nullptr, std::make_shared<Charge>(*std::move(existence))};
  entry.spec.contents = nullptr;
  shm::MutexLock lock(mutex_);
  if (devices_.contains(spec.name)) return Exists(spec.name);
  entry.inode = ++last_inode_;
  entry.device = Recorded(std::move(device), entry.inode);
  if (absl::Status status = Record(entry, /*removed=*/false); !status.ok()) return status;
  devices_.emplace(spec.name, entry);
  return Found{InfoOf(entry), entry.device};
}

// Its record goes with it, before its memory can be anybody else's.
std::shared_ptr<Device> Devices::Recorded(std::shared_ptr<Device> device, std::uint64_t number) const {
  struct Owner {
    Owner(std::shared_ptr<Device> device, shm::Ledger* ledger, std::uint64_t number)
        : device(std::move(device)), ledger(ledger), number(number) {}
    ~Owner() {
      if (ledger != nullptr) ledger->ApplyOrDefer({{kDevices, shm::LedgerKey({number})}}).IgnoreError();
    }
    std::shared_ptr<Device> device;
    shm::Ledger* ledger;
    std::uint64_t number;
  };
  Device* const at = device.get();
  return {std::make_shared<Owner>(std::move(device), ledger_, number), at};
}

absl::Status Devices::Record(const Entry& entry, bool removed) const {
  if (ledger_ == nullptr) return absl::OkStatus();
  record::Device to;
  to.set_name(entry.spec.name);
  to.set_kind(entry.spec.kind);
  to.mutable_options()->insert(entry.spec.options.begin(), entry.spec.options.end());
  to.set_uid(entry.spec.owner.uid);
  to.set_gid(entry.spec.owner.gid);
  to.set_mode(entry.spec.mode);
  to.set_removed(removed);
  entry.device->Record(to);
  const shm::Ledger::Change change{kDevices, shm::LedgerKey({entry.inode}), to.SerializeAsString()};
  return ledger_->Apply({&change, 1}).ok() ? absl::OkStatus() : CannotRecord("the device", "D");
}

absl::Status Devices::Update(const std::string& name) {
  shm::MutexLock lock(mutex_);
  const auto found = devices_.find(name);
  return found == devices_.end() ? NoSuchDevice(name) : Record(found->second, /*removed=*/false);
}

absl::Status Devices::Restore(std::uint64_t number, const record::Device& recorded, std::shared_ptr<Device> driver) {
  DeviceSpec spec{.name = recorded.name(),
                  .kind = recorded.kind(),
                  .options = {recorded.options().begin(), recorded.options().end()},
                  .owner = {.uid = recorded.uid(), .gid = recorded.gid()},
                  .mode = recorded.mode(),
                  .restored = shm::Run{recorded.first(), recorded.pages()}};
  if (driver == nullptr) {
    const DeviceKind* const kind = FindDeviceKind(spec.kind);
    if (kind == nullptr) return Contradiction(absl::StrCat("the device ", spec.name, " is of an unknown kind"));
    absl::StatusOr<std::shared_ptr<Device>> device = kind->make(spec, environment_.For(spec.owner.uid));
    if (!device.ok()) {
      return Contradiction(absl::StrCat("the device ", spec.name, ": ", std::string(device.status().message())));
    }
    driver = *std::move(device);
  }
  shm::MutexLock lock(mutex_);
  last_inode_ = std::max(last_inode_, number);
  auto existence =
      std::make_shared<Charge>(Charge::Add(environment_.For(spec.owner.uid).payer, Resource::kBytes, nommu::kPageSize));
  const Entry& entry = restored_[number] =
      Entry{std::move(spec), number, Recorded(std::move(driver), number), std::move(existence)};
  if (recorded.removed() || devices_.emplace(entry.spec.name, entry).second) return absl::OkStatus();
  return Contradiction(absl::StrCat("two devices are called ", entry.spec.name));
}

absl::StatusOr<Devices::Found> Devices::FindRestored(std::uint64_t number) const {
  shm::MutexLock lock(mutex_);
  const auto found = restored_.find(number);
  if (found == restored_.end()) return Contradiction(absl::StrCat("there is no device ", number));
  return Found{InfoOf(found->second), found->second.device};
}

std::shared_ptr<Backing> Devices::Reopen(const record::File& recorded) const {
  const absl::StatusOr<Found> found = FindRestored(recorded.of_device());
  if (!found.ok()) return nullptr;
  return std::make_shared<DeviceFile>(found->device, found->info.stat, static_cast<int>(recorded.open_flags()));
}

void Devices::EndRestoring() {
  absl::btree_map<std::uint64_t, Entry> gone;  // go after the lock
  shm::MutexLock lock(mutex_);
  gone.swap(restored_);
}

absl::Status Devices::Remove(const std::string& name, const Credentials& who) {
  std::shared_ptr<Device> gone;  // goes after the lock
  shm::MutexLock lock(mutex_);
  const auto found = devices_.find(name);
  if (found == devices_.end()) return NoSuchDevice(name);
  const uid_t owner = found->second.spec.owner.uid;
  if (!who.privileged() && who.uid != owner) {
    return Refuse(EPERM, "D", absl::StrCat(name, " belongs to user ", owner, ", who alone may remove it"));
  }
  if (absl::Status status = Record(found->second, /*removed=*/true); !status.ok()) return status;
  gone = std::move(found->second.device);
  devices_.erase(found);
  return absl::OkStatus();
}

void Devices::Withdraw(const std::string& name, const Device& device) {
  std::shared_ptr<Device> gone;  // goes after the lock
  shm::MutexLock lock(mutex_);
  const auto found = devices_.find(name);
  if (found == devices_.end() || found->second.device.get() != &device) return;
  // If that cannot be recorded, the name is there again after a restart, without a driver.
  Record(found->second, /*removed=*/true).IgnoreError();
  gone = std::move(found->second.device);
  devices_.erase(found);
}

absl::StatusOr<Devices::Entry> Devices::Get(const std::string& name, const Credentials& who, unsigned wanted) const {
  shm::MutexLock lock(mutex_);
  const auto found = devices_.find(name);
  if (found == devices_.end()) return NoSuchDevice(name);
  const DeviceSpec& spec = found->second.spec;
  if (!MayAccess(who, spec.owner.uid, spec.owner.gid, spec.mode, wanted)) {
    return Refuse(EACCES, "D", absl::StrCat("the permission bits of ", name, " do not allow it to user ", who.uid));
  }
  if (absl::Status status = found->second.device->MayOpen(who, wanted); !status.ok()) return status;
  return found->second;
}

absl::StatusOr<std::shared_ptr<Backing>> Devices::Open(const std::string& name, int flags,
                                                       const Credentials& who) const {
  const int access = flags & O_ACCMODE;
  if (access == O_ACCMODE) return Refuse(EINVAL, "D", "give one of O_RDONLY, O_WRONLY and O_RDWR");
  const unsigned wanted = (flags & O_PATH) != 0 ? 0u
                          : access == O_RDONLY  ? kRead
                          : access == O_WRONLY  ? kWrite
                                                : kRead | kWrite;
  const absl::StatusOr<Entry> entry = Get(name, who, wanted);
  if (!entry.ok()) return entry.status();
  return std::make_shared<DeviceFile>(entry->device, InfoOf(*entry).stat, flags);
}

absl::StatusOr<Devices::Found> Devices::Find(const std::string& name, const Credentials& who) const {
  const absl::StatusOr<Entry> entry = Get(name, who, kRead);
  if (!entry.ok()) return entry.status();
  return Found{InfoOf(*entry), entry->device};
}

DeviceInfo Devices::InfoOf(const Entry& entry) {
  const std::uint64_t size = entry.device->size();
  return DeviceInfo{.stat = {.name = entry.spec.name,
                             .inode = entry.inode,
                             .uid = entry.spec.owner.uid,
                             .gid = entry.spec.owner.gid,
                             .mode = entry.spec.mode,
                             .size = size,
                             .allocated = 0,
                             .runs = size > 0 ? 1u : 0u},
                    .kind = entry.spec.kind,
                    .capabilities = entry.device->capabilities(),
                    .properties = entry.device->Properties()};
}

absl::StatusOr<Devices::Found> Devices::Look(const std::string& name) const {
  shm::MutexLock lock(mutex_);
  const auto found = devices_.find(name);
  if (found == devices_.end()) return NoSuchDevice(name);
  return Found{InfoOf(found->second), found->second.device};
}

std::vector<DeviceInfo> Devices::List(const std::string& prefix) const {
  std::vector<DeviceInfo> listed;
  shm::MutexLock lock(mutex_);
  for (auto at = devices_.lower_bound(prefix); at != devices_.end() && absl::StartsWith(at->first, prefix); ++at) {
    listed.push_back(InfoOf(at->second));
  }
  return listed;
}

absl::Status Devices::Erase(const std::string& name, std::uint64_t offset, std::uint64_t length,
                            const Credentials& who) const {
  const absl::StatusOr<Entry> entry = Get(name, who, kWrite);
  if (!entry.ok()) return entry.status();
  return entry->device->Erase(offset, length);
}

}  // namespace mapbroker::backing
