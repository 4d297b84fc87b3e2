// mapbroker.v1.Drivers on the broker.
#pragma once

#include "daemon/broker.h"
#include "daemon/session/session_table.h"
#include "mapbroker/v1/drivers.grpc.pb.h"

namespace mapbroker::rpc {

// With callbacks, unlike the other services: a driver's stream is open for long, and must not cost a thread.
class DriversService final : public v1::Drivers::CallbackService {
 public:
  DriversService(Broker& broker, const session::SessionTable& sessions) : broker_(broker), sessions_(sessions) {}

  grpc::ServerBidiReactor<v1::FromDriver, v1::ToDriver>* Drive(grpc::CallbackServerContext* context) override;

 private:
  Broker& broker_;
  const session::SessionTable& sessions_;
};

}  // namespace mapbroker::rpc
