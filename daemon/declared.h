// What configuration says exists from the start: ram files, devices and mounts.
#pragma once

#include "absl/status/status.h"
#include "daemon/broker.h"
#include "daemon/config.h"

namespace mapbroker {

// Makes all of it; `restored`: but for what is there already. The first that cannot be made is told with the file and
// line that declares it.
absl::Status MakeDeclared(const Config& config, Broker& broker, bool restored);

}  // namespace mapbroker
