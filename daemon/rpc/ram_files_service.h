// The RamFiles service: decode, call the broker, encode.
#pragma once

#include "daemon/broker.h"
#include "daemon/session/session_table.h"
#include "mapbroker/v1/ram_files.grpc.pb.h"

namespace mapbroker::rpc {

class RamFilesService final : public v1::RamFiles::Service {
 public:
  // Both outlive the service.
  RamFilesService(Broker& broker, const session::SessionTable& sessions) : broker_(broker), sessions_(sessions) {}

  grpc::Status Open(grpc::ServerContext* context, const v1::RamOpenRequest* request,
                    v1::RamOpenResponse* response) override;
  grpc::Status Close(grpc::ServerContext* context, const v1::RamCloseRequest* request,
                     v1::RamCloseResponse* response) override;
  grpc::Status Ftruncate(grpc::ServerContext* context, const v1::RamFtruncateRequest* request,
                         v1::RamFtruncateResponse* response) override;
  grpc::Status Pread(grpc::ServerContext* context, const v1::RamPreadRequest* request,
                     v1::RamPreadResponse* response) override;
  grpc::Status Pwrite(grpc::ServerContext* context, const v1::RamPwriteRequest* request,
                      v1::RamPwriteResponse* response) override;
  grpc::Status Fstat(grpc::ServerContext* context, const v1::RamFstatRequest* request, v1::RamStat* response) override;
  grpc::Status Stat(grpc::ServerContext* context, const v1::RamStatRequest* request, v1::RamStat* response) override;
  grpc::Status Unlink(grpc::ServerContext* context, const v1::RamUnlinkRequest* request,
                      v1::RamUnlinkResponse* response) override;
  grpc::Status List(grpc::ServerContext* context, const v1::RamListRequest* request,
                    grpc::ServerWriter<v1::RamListResponse>* writer) override;

 private:
  absl::StatusOr<std::shared_ptr<backing::RamFile>> FileOf(const grpc::ServerContext& context, int fd) const;

  Broker& broker_;
  const session::SessionTable& sessions_;
};

}  // namespace mapbroker::rpc
