// The SysvShm service: decode, call the broker, encode.
#pragma once

#include "daemon/broker.h"
#include "daemon/session/session_table.h"
#include "mapbroker/v1/sysv_shm.grpc.pb.h"

namespace mapbroker::rpc {

class SysvShmService final : public v1::SysvShm::Service {
 public:
  // Both outlive the service.
  SysvShmService(Broker& broker, const session::SessionTable& sessions) : broker_(broker), sessions_(sessions) {}

  grpc::Status Shmget(grpc::ServerContext* context, const v1::ShmgetRequest* request,
                      v1::ShmgetResponse* response) override;
  grpc::Status Shmat(grpc::ServerContext* context, const v1::ShmatRequest* request,
                     v1::ShmatResponse* response) override;
  grpc::Status Shmdt(grpc::ServerContext* context, const v1::ShmdtRequest* request,
                     v1::ShmdtResponse* response) override;
  grpc::Status Stat(grpc::ServerContext* context, const v1::ShmStatRequest* request, v1::ShmSegment* response) override;
  grpc::Status Set(grpc::ServerContext* context, const v1::ShmSetRequest* request,
                   v1::ShmSetResponse* response) override;
  grpc::Status Remove(grpc::ServerContext* context, const v1::ShmRemoveRequest* request,
                      v1::ShmRemoveResponse* response) override;
  grpc::Status List(grpc::ServerContext* context, const v1::ShmListRequest* request,
                    grpc::ServerWriter<v1::ShmSegment>* writer) override;

 private:
  Broker& broker_;
  const session::SessionTable& sessions_;
};

}  // namespace mapbroker::rpc
