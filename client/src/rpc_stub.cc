#include "client/src/rpc_stub.h"

#include <grpcpp/channel.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/channel_arguments.h>

#include <cerrno>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "client/src/status.h"
#include "mapbroker/v1/memory.grpc.pb.h"
#include "proto/handoff_packet.h"

namespace mapbroker {
namespace {

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  v1::RpcStatus details;
  v1::Error error;
  if (details.ParseFromString(status.error_details()) && details.details_size() > 0 &&
      details.details(0).UnpackTo(&error)) {
    return FromWire(error);
  }
  if (status.error_code() == grpc::StatusCode::UNAVAILABLE) {
    return NoDaemon(ECONNRESET, "the daemon does not answer: it was stopped; connect anew when it is back");
  }
  return MakeStatus(EIO, absl::StrCat("gRPC: ", status.error_message()));
}

}  // namespace

struct RpcStub::Channel {
  std::string hex_token;
  std::unique_ptr<v1::Memory::Stub> stub;

  void Authorize(grpc::ClientContext& context) const { context.AddMetadata(kSessionMetadata, hex_token); }
};

RpcStub::RpcStub(const std::string& runtime_dir, const std::string& token) : channel_(std::make_unique<Channel>()) {
  grpc::ChannelArguments arguments;
  // A connection of its own, so that sessions of one process do not queue behind each other.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  // A portion of a listing is bounded in rows, but paths may be long.
  arguments.SetMaxReceiveMessageSize(-1);
  channel_->hex_token = absl::BytesToHexString(token);
  channel_->stub = v1::Memory::NewStub(grpc::CreateCustomChannel(
      absl::StrCat("unix:", runtime_dir, "/", kGrpcSocketName), grpc::InsecureChannelCredentials(), arguments));
}

RpcStub::~RpcStub() = default;

absl::StatusOr<v1::MmapResponse> RpcStub::Mmap(const v1::MmapRequest& request) {
  grpc::ClientContext context;
  channel_->Authorize(context);
  v1::MmapResponse response;
  const absl::Status status = FromGrpc(channel_->stub->Mmap(&context, request, &response));
  if (!status.ok()) return status;
  return response;
}

absl::Status RpcStub::Munmap(const v1::MunmapRequest& request) {
  grpc::ClientContext context;
  channel_->Authorize(context);
  v1::MunmapResponse response;
  return FromGrpc(channel_->stub->Munmap(&context, request, &response));
}

absl::StatusOr<v1::MremapResponse> RpcStub::Mremap(const v1::MremapRequest& request) {
  grpc::ClientContext context;
  channel_->Authorize(context);
  v1::MremapResponse response;
  const absl::Status status = FromGrpc(channel_->stub->Mremap(&context, request, &response));
  if (!status.ok()) return status;
  return response;
}

absl::Status RpcStub::ListMappings(const v1::ListMappingsRequest& request,
                                   const std::function<bool(const v1::MappingRow&)>& row) {
  grpc::ClientContext context;
  const auto reader = channel_->stub->ListMappings(&context, request);
  v1::ListMappingsResponse portion;
  while (reader->Read(&portion)) {
    for (const v1::MappingRow& next : portion.rows()) {
      if (row(next)) continue;
      context.TryCancel();
      reader->Finish();
      return absl::OkStatus();
    }
  }
  return FromGrpc(reader->Finish());
}

absl::StatusOr<v1::PoolStatistics> RpcStub::GetPoolStatistics() {
  grpc::ClientContext context;
  v1::PoolStatistics response;
  const absl::Status status =
      FromGrpc(channel_->stub->GetPoolStatistics(&context, v1::GetPoolStatisticsRequest(), &response));
  if (!status.ok()) return status;
  return response;
}

}  // namespace mapbroker
