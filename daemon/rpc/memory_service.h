// The Memory service: decode, call the broker, encode.
#pragma once

#include "daemon/broker.h"
#include "daemon/session/session_table.h"
#include "mapbroker/v1/memory.grpc.pb.h"

namespace mapbroker::rpc {

class MemoryService final : public v1::Memory::Service {
 public:
  // Both outlive the service.
  MemoryService(Broker& broker, const session::SessionTable& sessions) : broker_(broker), sessions_(sessions) {}

  grpc::Status Mmap(grpc::ServerContext* context, const v1::MmapRequest* request, v1::MmapResponse* response) override;
  grpc::Status Munmap(grpc::ServerContext* context, const v1::MunmapRequest* request,
                      v1::MunmapResponse* response) override;
  grpc::Status Mremap(grpc::ServerContext* context, const v1::MremapRequest* request,
                      v1::MremapResponse* response) override;

 private:
  Broker& broker_;
  const session::SessionTable& sessions_;
};

}  // namespace mapbroker::rpc
