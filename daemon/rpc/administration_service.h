// The Administration service: decode, ask whether the caller may, do it, tell.
#pragma once

#include "daemon/events.h"
#include "daemon/rpc/roles.h"
#include "daemon/session/session_table.h"
#include "mapbroker/v1/administration.grpc.pb.h"

namespace mapbroker::rpc {

class AdministrationService final : public v1::Administration::Service {
 public:
  // All outlive the service.
  AdministrationService(session::SessionTable& sessions, Events& events, const Roles& roles)
      : sessions_(sessions), events_(events), roles_(roles) {}

  grpc::Status EndSession(grpc::ServerContext* context, const v1::EndSessionRequest* request,
                          v1::EndSessionResponse* response) override;
  grpc::Status SetLogLevel(grpc::ServerContext* context, const v1::SetLogLevelRequest* request,
                           v1::SetLogLevelResponse* response) override;

 private:
  void Tell(const grpc::ServerContext& context, const std::string& what);

  session::SessionTable& sessions_;
  Events& events_;
  const Roles& roles_;
};

}  // namespace mapbroker::rpc
