// The Files service: decode, call the broker, encode.
#pragma once

#include "daemon/broker.h"
#include "daemon/session/session_table.h"
#include "mapbroker/v1/files.grpc.pb.h"

namespace mapbroker::rpc {

class FilesService final : public v1::Files::Service {
 public:
  // Both outlive the service.
  FilesService(Broker& broker, const session::SessionTable& sessions) : broker_(broker), sessions_(sessions) {}

  grpc::Status Open(grpc::ServerContext* context, const v1::OpenRequest* request, v1::OpenResponse* response) override;
  grpc::Status Close(grpc::ServerContext* context, const v1::CloseRequest* request,
                     v1::CloseResponse* response) override;
  grpc::Status Ftruncate(grpc::ServerContext* context, const v1::FtruncateRequest* request,
                         v1::FtruncateResponse* response) override;
  grpc::Status Pread(grpc::ServerContext* context, const v1::PreadRequest* request,
                     v1::PreadResponse* response) override;
  grpc::Status Pwrite(grpc::ServerContext* context, const v1::PwriteRequest* request,
                      v1::PwriteResponse* response) override;
  grpc::Status Fstat(grpc::ServerContext* context, const v1::FstatRequest* request, v1::FileStat* response) override;
  grpc::Status Stat(grpc::ServerContext* context, const v1::StatRequest* request, v1::FileStat* response) override;
  grpc::Status Unlink(grpc::ServerContext* context, const v1::UnlinkRequest* request,
                      v1::UnlinkResponse* response) override;
  grpc::Status List(grpc::ServerContext* context, const v1::ListFilesRequest* request,
                    grpc::ServerWriter<v1::ListFilesResponse>* writer) override;

 private:
  absl::StatusOr<std::shared_ptr<backing::Backing>> FileOf(const grpc::ServerContext& context, int fd) const;

  Broker& broker_;
  const session::SessionTable& sessions_;
};

}  // namespace mapbroker::rpc
