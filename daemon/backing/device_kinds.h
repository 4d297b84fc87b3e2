// Every kind of device, for device_kinds.cc, which lists them.
#pragma once

#include "daemon/backing/device.h"

namespace mapbroker::backing {

extern const DeviceKind kFlash;
extern const DeviceKind kFramebuffer;
extern const DeviceKind kMemDevice;
extern const DeviceKind kNullDevice;
extern const DeviceKind kRamdisk;
extern const DeviceKind kZeroDevice;

}  // namespace mapbroker::backing
