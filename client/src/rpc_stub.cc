#include "client/src/rpc_stub.h"

#include <grpcpp/channel.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/channel_arguments.h>

#include <algorithm>
#include <cerrno>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "client/src/status.h"
#include "mapbroker/v1/memory.grpc.pb.h"
#include "mapbroker/v1/ram_files.grpc.pb.h"
#include "mapbroker/v1/sysv_shm.grpc.pb.h"
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
  std::unique_ptr<v1::Memory::Stub> memory;
  std::unique_ptr<v1::RamFiles::Stub> ram_files;
  std::unique_ptr<v1::SysvShm::Stub> sysv_shm;

  // One call with one answer.
  template <typename Stub, typename Request, typename Response>
  absl::StatusOr<Response> Call(Stub& stub,
                                grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                                const Request& request) const {
    grpc::ClientContext context;
    context.AddMetadata(kSessionMetadata, hex_token);
    Response response;
    const absl::Status status = FromGrpc((stub.*method)(&context, request, &response));
    if (!status.ok()) return status;
    return response;
  }

  // One call with a stream of answers, which `take` gets until it returns false.
  template <typename Response, typename Stub, typename Request>
  absl::Status Read(Stub& stub,
                    std::unique_ptr<grpc::ClientReader<Response>> (Stub::*method)(grpc::ClientContext*, const Request&),
                    const Request& request, const std::function<bool(const Response&)>& take) const {
    grpc::ClientContext context;
    const auto reader = (stub.*method)(&context, request);
    Response response;
    while (reader->Read(&response)) {
      if (take(response)) continue;
      context.TryCancel();
      reader->Finish();
      return absl::OkStatus();
    }
    return FromGrpc(reader->Finish());
  }
};

RpcStub::RpcStub(const std::string& runtime_dir, const std::string& token) : channel_(std::make_unique<Channel>()) {
  grpc::ChannelArguments arguments;
  // A connection of its own, so that sessions of one process do not queue behind each other.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  // A portion of a listing is bounded in rows, but paths may be long.
  arguments.SetMaxReceiveMessageSize(-1);
  channel_->hex_token = absl::BytesToHexString(token);
  const auto channel = grpc::CreateCustomChannel(absl::StrCat("unix:", runtime_dir, "/", kGrpcSocketName),
                                                 grpc::InsecureChannelCredentials(), arguments);
  channel_->memory = v1::Memory::NewStub(channel);
  channel_->ram_files = v1::RamFiles::NewStub(channel);
  channel_->sysv_shm = v1::SysvShm::NewStub(channel);
}

RpcStub::~RpcStub() = default;

absl::StatusOr<v1::MmapResponse> RpcStub::Mmap(const v1::MmapRequest& request) {
  return channel_->Call(*channel_->memory, &v1::Memory::Stub::Mmap, request);
}

absl::Status RpcStub::Munmap(const v1::MunmapRequest& request) {
  return channel_->Call(*channel_->memory, &v1::Memory::Stub::Munmap, request).status();
}

absl::StatusOr<v1::MremapResponse> RpcStub::Mremap(const v1::MremapRequest& request) {
  return channel_->Call(*channel_->memory, &v1::Memory::Stub::Mremap, request);
}

absl::Status RpcStub::ListMappings(const v1::ListMappingsRequest& request,
                                   const std::function<bool(const v1::MappingRow&)>& row) {
  return channel_->Read<v1::ListMappingsResponse>(
      *channel_->memory, &v1::Memory::Stub::ListMappings, request, [&](const v1::ListMappingsResponse& portion) {
        return std::all_of(portion.rows().begin(), portion.rows().end(), row);
      });
}

absl::StatusOr<v1::PoolStatistics> RpcStub::GetPoolStatistics() {
  return channel_->Call(*channel_->memory, &v1::Memory::Stub::GetPoolStatistics, v1::GetPoolStatisticsRequest());
}

absl::StatusOr<v1::RamOpenResponse> RpcStub::RamOpen(const v1::RamOpenRequest& request) {
  return channel_->Call(*channel_->ram_files, &v1::RamFiles::Stub::Open, request);
}

absl::Status RpcStub::RamClose(const v1::RamCloseRequest& request) {
  return channel_->Call(*channel_->ram_files, &v1::RamFiles::Stub::Close, request).status();
}

absl::Status RpcStub::RamFtruncate(const v1::RamFtruncateRequest& request) {
  return channel_->Call(*channel_->ram_files, &v1::RamFiles::Stub::Ftruncate, request).status();
}

absl::StatusOr<v1::RamPreadResponse> RpcStub::RamPread(const v1::RamPreadRequest& request) {
  return channel_->Call(*channel_->ram_files, &v1::RamFiles::Stub::Pread, request);
}

absl::Status RpcStub::RamPwrite(const v1::RamPwriteRequest& request) {
  return channel_->Call(*channel_->ram_files, &v1::RamFiles::Stub::Pwrite, request).status();
}

absl::StatusOr<v1::RamStat> RpcStub::RamFstat(const v1::RamFstatRequest& request) {
  return channel_->Call(*channel_->ram_files, &v1::RamFiles::Stub::Fstat, request);
}

absl::StatusOr<v1::RamStat> RpcStub::RamStat(const v1::RamStatRequest& request) {
  return channel_->Call(*channel_->ram_files, &v1::RamFiles::Stub::Stat, request);
}

absl::Status RpcStub::RamUnlink(const v1::RamUnlinkRequest& request) {
  return channel_->Call(*channel_->ram_files, &v1::RamFiles::Stub::Unlink, request).status();
}

absl::Status RpcStub::RamList(const v1::RamListRequest& request, const std::function<bool(const v1::RamStat&)>& file) {
  return channel_->Read<v1::RamListResponse>(*channel_->ram_files, &v1::RamFiles::Stub::List, request,
                                             [&](const v1::RamListResponse& portion) {
                                               return std::all_of(portion.files().begin(), portion.files().end(), file);
                                             });
}

absl::StatusOr<v1::ShmgetResponse> RpcStub::Shmget(const v1::ShmgetRequest& request) {
  return channel_->Call(*channel_->sysv_shm, &v1::SysvShm::Stub::Shmget, request);
}

absl::StatusOr<v1::ShmatResponse> RpcStub::Shmat(const v1::ShmatRequest& request) {
  return channel_->Call(*channel_->sysv_shm, &v1::SysvShm::Stub::Shmat, request);
}

absl::Status RpcStub::Shmdt(const v1::ShmdtRequest& request) {
  return channel_->Call(*channel_->sysv_shm, &v1::SysvShm::Stub::Shmdt, request).status();
}

absl::StatusOr<v1::ShmSegment> RpcStub::ShmStat(const v1::ShmStatRequest& request) {
  return channel_->Call(*channel_->sysv_shm, &v1::SysvShm::Stub::Stat, request);
}

absl::Status RpcStub::ShmSet(const v1::ShmSetRequest& request) {
  return channel_->Call(*channel_->sysv_shm, &v1::SysvShm::Stub::Set, request).status();
}

absl::Status RpcStub::ShmRemove(const v1::ShmRemoveRequest& request) {
  return channel_->Call(*channel_->sysv_shm, &v1::SysvShm::Stub::Remove, request).status();
}

absl::Status RpcStub::ShmList(const std::function<bool(const v1::ShmSegment&)>& segment) {
  return channel_->Read<v1::ShmSegment>(*channel_->sysv_shm, &v1::SysvShm::Stub::List, v1::ShmListRequest(), segment);
}

}  // namespace mapbroker
