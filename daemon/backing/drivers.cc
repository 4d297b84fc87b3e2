#include "daemon/backing/drivers.h"

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "daemon/nommu/refusal.h"
#include "daemon/records.h"

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
    const DriverChannel& driver = *channel;
    absl::StatusOr<std::vector<DriverArea>> areas = device->Connect(spec, std::move(channel));
    if (!areas.ok()) return areas.status();
    if (absl::Status status = devices_.Update(spec.name); !status.ok()) {
      device->Disconnect(driver);
      return status;
    }
    return Registered{device, DriverDevice::MemoryFile(device, standing->info.stat), *std::move(areas)};
  }
  absl::StatusOr<std::shared_ptr<DriverDevice>> device =
      DriverDevice::Make(spec, environment_.For(spec.owner.uid), deadline_);
  if (!device.ok()) return device.status();
  if (const auto connected = (*device)->Connect(spec, std::move(channel)); !connected.ok()) return connected.status();
  const absl::StatusOr<Devices::Found> added = devices_.Add(
      {.name = spec.name, .kind = "driver", .options = {}, .owner = spec.owner, .mode = spec.mode}, *device);
  if (!added.ok()) return added.status();
  auto driven = std::static_pointer_cast<DriverDevice>(added->device);
  return Registered{driven, DriverDevice::MemoryFile(driven, added->info.stat), {}};
}

absl::Status Drivers::Restore(std::uint64_t number, const record::Device& recorded) {
  absl::StatusOr<std::shared_ptr<DriverDevice>> device =
      DriverDevice::Restore(recorded, environment_.For(recorded.uid()), deadline_);
  if (!device.ok()) {
    return Contradiction(absl::StrCat("the device ", recorded.name(), ": ", std::string(device.status().message())));
  }
  return devices_.Restore(number, recorded, *std::move(device));
}

std::shared_ptr<Backing> Drivers::Reopen(const record::File& recorded) const {
  const absl::StatusOr<Devices::Found> found = devices_.FindRestored(recorded.of_device());
  auto device = found.ok() ? std::dynamic_pointer_cast<DriverDevice>(found->device) : nullptr;
  return device == nullptr ? nullptr : DriverDevice::MemoryFile(std::move(device), found->info.stat);
}

void Drivers::Unregister(const DriverDevice& device, const std::string& name) { devices_.Withdraw(name, device); }

}  // namespace mapbroker::backing
