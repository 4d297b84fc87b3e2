// The Inspection service: what the daemon holds and does, encoded.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <string>

#include "daemon/broker.h"
#include "daemon/events.h"
#include "daemon/session/session_table.h"
#include "mapbroker/v1/inspection.grpc.pb.h"
#include "shm_backend/ledger.h"

namespace mapbroker::rpc {

// What does not change while a daemon runs, or is not the broker's.
struct DaemonFacts {
  std::chrono::system_clock::time_point started = std::chrono::system_clock::now();
  std::chrono::steady_clock::time_point began = std::chrono::steady_clock::now();
  bool taken_over = false;
  std::int64_t state_since_ms = 0;
  std::function<std::map<std::string, std::uint64_t>()> limits;  // those in force, by the names of the configuration
};

class InspectionService final : public v1::Inspection::Service {
 public:
  // All outlive the service.
  InspectionService(const Broker& broker, const session::SessionTable& sessions, const shm::Ledger& ledger,
                    Events& events, DaemonFacts facts)
      : broker_(broker), sessions_(sessions), ledger_(ledger), events_(events), facts_(std::move(facts)) {}

  grpc::Status GetStatus(grpc::ServerContext* context, const v1::GetStatusRequest* request,
                         v1::DaemonStatus* response) override;
  grpc::Status ListMappings(grpc::ServerContext* context, const v1::ListMappingsRequest* request,
                            grpc::ServerWriter<v1::ListMappingsResponse>* writer) override;
  grpc::Status ListSessions(grpc::ServerContext* context, const v1::ListSessionsRequest* request,
                            grpc::ServerWriter<v1::ListSessionsResponse>* writer) override;
  grpc::Status Watch(grpc::ServerContext* context, const v1::WatchRequest* request,
                     grpc::ServerWriter<v1::WatchResponse>* writer) override;

 private:
  const Broker& broker_;
  const session::SessionTable& sessions_;
  const shm::Ledger& ledger_;
  Events& events_;
  const DaemonFacts facts_;
};

}  // namespace mapbroker::rpc
