// The Ptrace service: decode, ask whether the caller may, call the broker, encode.
#pragma once

#include "daemon/broker.h"
#include "daemon/session/session_table.h"
#include "mapbroker/v1/ptrace.grpc.pb.h"

namespace mapbroker::rpc {

class PtraceService final : public v1::Ptrace::Service {
 public:
  // Both outlive the service.
  PtraceService(Broker& broker, session::SessionTable& sessions) : broker_(broker), sessions_(sessions) {}

  grpc::Status SetTraced(grpc::ServerContext* context, const v1::SetTracedRequest* request,
                         v1::SetTracedResponse* response) override;
  grpc::Status Peek(grpc::ServerContext* context, const v1::PeekRequest* request, v1::PeekResponse* response) override;
  grpc::Status Poke(grpc::ServerContext* context, const v1::PokeRequest* request, v1::PokeResponse* response) override;

 private:
  // EPERM, ESRCH.
  absl::Status MayTrace(const session::Session& caller, pid_t pid) const;

  Broker& broker_;
  session::SessionTable& sessions_;
};

}  // namespace mapbroker::rpc
