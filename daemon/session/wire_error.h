// Refusals as the protocol carries them, on either socket.
#pragma once

#include "absl/status/status.h"
#include "mapbroker/v1/error.pb.h"

namespace mapbroker::session {

v1::Error ToWireError(const absl::Status& status);

}  // namespace mapbroker::session
