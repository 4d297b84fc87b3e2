// The Devices service: decode, call the broker, encode.
#pragma once

#include "daemon/broker.h"
#include "daemon/session/session_table.h"
#include "mapbroker/v1/devices.grpc.pb.h"

namespace mapbroker::rpc {

class DevicesService final : public v1::Devices::Service {
 public:
  // Both outlive the service.
  DevicesService(Broker& broker, const session::SessionTable& sessions) : broker_(broker), sessions_(sessions) {}

  grpc::Status Create(grpc::ServerContext* context, const v1::CreateDeviceRequest* request,
                      v1::CreateDeviceResponse* response) override;
  grpc::Status Remove(grpc::ServerContext* context, const v1::RemoveDeviceRequest* request,
                      v1::RemoveDeviceResponse* response) override;
  grpc::Status Info(grpc::ServerContext* context, const v1::DeviceInfoRequest* request,
                    v1::DeviceInfo* response) override;
  grpc::Status List(grpc::ServerContext* context, const v1::ListDevicesRequest* request,
                    grpc::ServerWriter<v1::DeviceInfo>* writer) override;
  grpc::Status Erase(grpc::ServerContext* context, const v1::EraseRequest* request,
                     v1::EraseResponse* response) override;
  grpc::Status Mount(grpc::ServerContext* context, const v1::MountRequest* request,
                     v1::MountResponse* response) override;
  grpc::Status Unmount(grpc::ServerContext* context, const v1::UnmountRequest* request,
                       v1::UnmountResponse* response) override;

 private:
  grpc::Status Done(const absl::Status& status, EventKind kind, const session::Session& caller,
                    const std::string& name);

  Broker& broker_;
  const session::SessionTable& sessions_;
};

}  // namespace mapbroker::rpc
