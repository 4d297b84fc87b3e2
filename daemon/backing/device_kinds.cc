#include "daemon/backing/device_kinds.h"

namespace mapbroker::backing {

const DeviceKind* FindDeviceKind(const std::string& name) {
  for (const DeviceKind* kind : {&kFlash, &kFramebuffer, &kMemDevice, &kNullDevice, &kRamdisk, &kZeroDevice}) {
    if (name == kind->name) return kind;
  }
  return nullptr;
}

}  // namespace mapbroker::backing
