#include "daemon/backing/drivers.h"

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "daemon/nommu/refusal.h"

namespace mapbroker::backing {

using nommu::Refuse;

absl::StatusOr<Drivers::Registered> Drivers::Register(const DriverSpec& spec, std::shared_ptr<DriverChannel> channel) {
  if (const auto standing = devices_.Look(spec.name); standing.ok()) {
    auto device = std::dynamic_pointer_cast<DriverDevice>(standing->device);
    if (device == nullptr) {
      return Refuse(EEXIST, "D12", absl::StrCat("the device ", spec.name, " exists, and no process drives it"));
    }
    if (!spec.owner.privileged() && spec.owner.uid != standing->info.stat.uid) {
      return Refuse(EPERM, "D12",
                    absl::StrCat(spec.name, " belongs to user ", standing->info.stat.uid, ", who alone may drive it"));
    }
    if (absl::Status status = device->Connect(spec, std::move(channel)); !status.ok()) return status;
    return Registered{device, device->MemoryFile(standing->info.stat)};
  }
  absl::StatusOr<std::shared_ptr<DriverDevice>> device =
      DriverDevice::Make(spec, environment_.For(spec.owner.uid), deadline_);
  if (!device.ok()) return device.status();
  if (absl::Status status = (*device)->Connect(spec, std::move(channel)); !status.ok()) return status;
  const absl::StatusOr<FileStat> stat = devices_.Add(
      {.name = spec.name, .kind = "driver", .options = {}, .owner = spec.owner, .mode = spec.mode, .contents = nullptr},
      *device);
  if (!stat.ok()) return stat.status();
  return Registered{*device, (*device)->MemoryFile(*stat)};
}

void Drivers::Unregister(const DriverDevice& device, const std::string& name) { devices_.Withdraw(name, device); }

}  // namespace mapbroker::backing
