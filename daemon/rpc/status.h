// Refusals as gRPC carries them.
#pragma once

#include <grpcpp/support/status.h>

#include "absl/status/status.h"

namespace mapbroker::rpc {

// The canonical code, the sentence, and an Error in the details (error.proto).
grpc::Status ToGrpc(const absl::Status& status);

}  // namespace mapbroker::rpc
