// Errors inside the library: made from an errno or from what the daemon said.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "mapbroker/error.h"
#include "mapbroker/v1/error.pb.h"

namespace mapbroker {

// A status with the errno `error` that ErrnoOf reads.
absl::Status MakeStatus(int error, const std::string& sentence, const std::string& rule = "");

// No daemon answers: code Unavailable, whatever the errno.
absl::Status NoDaemon(int error, const std::string& sentence);

absl::Status FromWire(const v1::Error& error);

}  // namespace mapbroker
