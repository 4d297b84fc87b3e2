#include "daemon/rpc/status.h"

#include <string>

#include "daemon/session/wire_error.h"
#include "mapbroker/v1/error.pb.h"

namespace mapbroker::rpc {

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  v1::RpcStatus details;
  details.set_code(static_cast<int>(status.code()));
  details.set_message(std::string(status.message()));
  details.add_details()->PackFrom(session::ToWireError(status));
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), details.message(), details.SerializeAsString());
}

}  // namespace mapbroker::rpc
