// The devices that other processes drive.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "daemon/backing/devices.h"
#include "daemon/backing/driver_device.h"

namespace mapbroker::backing {

// Thread-safe.
class Drivers {
 public:
  // `devices` outlives it.
  Drivers(Devices& devices, const DeviceEnvironment& environment, std::chrono::milliseconds deadline)
      : devices_(devices), environment_(environment), deadline_(deadline) {}

  // For drivers that register from now on.
  void SetDeadline(std::chrono::milliseconds deadline) { deadline_ = deadline; }

  struct Registered {
    std::shared_ptr<DriverDevice> device;
    std::shared_ptr<Backing> memory;  // what the driver maps; null if it asked for none
    std::vector<DriverArea> areas;    // what is mapped already
  };
  // Makes the device of that name, or takes one over whose driver has gone and had the same owner. Calls may be sent
  // before this returns. EEXIST, EBUSY (it has a driver), EPERM (another's), EINVAL (name, numbers), ENOMEM.
  absl::StatusOr<Registered> Register(const DriverSpec& spec, std::shared_ptr<DriverChannel> channel);
  // The device goes with its driver. Who has it open or mapped keeps it.
  void Unregister(const DriverDevice& device, const std::string& name);

  // Makes a recorded device again, whose driver is expected to take it over. DataLoss.
  absl::Status Restore(std::uint64_t number, const record::Device& recorded);
  // A driver's memory. Null if there is no such device.
  std::shared_ptr<Backing> Reopen(const record::File& recorded) const;

 private:
  Devices& devices_;
  const DeviceEnvironment environment_;
  std::atomic<std::chrono::milliseconds> deadline_;
};

}  // namespace mapbroker::backing
