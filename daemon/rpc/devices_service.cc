#include "daemon/rpc/devices_service.h"

#include <cerrno>

#include "daemon/nommu/refusal.h"
#include "daemon/rpc/caller.h"
#include "daemon/rpc/status.h"

namespace mapbroker::rpc {
namespace {

void ToProto(const backing::DeviceInfo& info, v1::DeviceInfo& to) {
  to.set_name(info.stat.name);
  to.set_kind(info.kind);
  to.set_size(info.stat.size);
  to.set_uid(info.stat.uid);
  to.set_gid(info.stat.gid);
  to.set_mode(info.stat.mode);
  to.set_capabilities(info.capabilities);
  to.mutable_properties()->insert(info.properties.begin(), info.properties.end());
}

}  // namespace

// A refusal is told where all are.
grpc::Status DevicesService::Done(const absl::Status& status, EventKind kind, const session::Session& caller,
                                  const std::string& name) {
  if (status.ok()) {
    broker_.events().Tell(kind, [&] {
      return Event{
          .kind = kind, .session = caller.id(), .pid = caller.peer().pid, .uid = caller.peer().uid, .path = name};
    });
  }
  return ToGrpc(status);
}

grpc::Status DevicesService::Create(grpc::ServerContext* context, const v1::CreateDeviceRequest* request,
                                    v1::CreateDeviceResponse*) {
  const auto caller = CallerOf(*context, sessions_);
  if (!caller.ok()) return ToGrpc(caller.status());
  backing::DeviceSpec spec{.name = request->name(),
                           .kind = request->kind(),
                           .options = {request->options().begin(), request->options().end()},
                           .owner = (*caller)->peer(),
                           .mode = request->mode() & 0777,
                           .contents = nullptr};
  if (request->has_contents()) {
    spec.contents = (*caller)->File(request->contents());
    if (spec.contents == nullptr || !spec.contents->readable) {
      return ToGrpc(nommu::Refuse(EBADF, "D", "the contents are no file of the session that is open for reading"));
    }
  }
  return Done(broker_.devices().Create(spec), EventKind::kDeviceCreated, **caller, request->name());
}

grpc::Status DevicesService::Remove(grpc::ServerContext* context, const v1::RemoveDeviceRequest* request,
                                    v1::RemoveDeviceResponse*) {
  const auto caller = CallerOf(*context, sessions_);
  if (!caller.ok()) return ToGrpc(caller.status());
  return Done(broker_.devices().Remove(request->name(), (*caller)->peer()), EventKind::kDeviceRemoved, **caller,
              request->name());
}

grpc::Status DevicesService::Info(grpc::ServerContext* context, const v1::DeviceInfoRequest* request,
                                  v1::DeviceInfo* response) {
  const absl::StatusOr<Charge> call = Admit(*context, sessions_);
  if (!call.ok()) return ToGrpc(call.status());
  const auto found = broker_.devices().Look(request->name());
  if (!found.ok()) return ToGrpc(found.status());
  ToProto(found->info, *response);
  return grpc::Status::OK;
}

grpc::Status DevicesService::List(grpc::ServerContext* context, const v1::ListDevicesRequest*,
                                  grpc::ServerWriter<v1::DeviceInfo>* writer) {
  const absl::StatusOr<Charge> call = Admit(*context, sessions_);
  if (!call.ok()) return ToGrpc(call.status());
  for (const backing::DeviceInfo& info : broker_.devices().List("")) {
    v1::DeviceInfo response;
    ToProto(info, response);
    if (!writer->Write(response)) break;  // the reader has gone
  }
  return grpc::Status::OK;
}

grpc::Status DevicesService::Erase(grpc::ServerContext* context, const v1::EraseRequest* request, v1::EraseResponse*) {
  const auto caller = CallerOf(*context, sessions_);
  if (!caller.ok()) return ToGrpc(caller.status());
  if ((*caller)->read_only()) {
    return ToGrpc(nommu::Refuse(EACCES, "D5", "the session is read-only: connect without read_only to erase"));
  }
  return ToGrpc(broker_.devices().Erase(request->name(), request->offset(), request->length(), (*caller)->peer()));
}

grpc::Status DevicesService::Mount(grpc::ServerContext* context, const v1::MountRequest* request, v1::MountResponse*) {
  const auto caller = CallerOf(*context, sessions_);
  if (!caller.ok()) return ToGrpc(caller.status());
  return Done(broker_.mounts().Mount(request->name(), request->device(), request->type(), (*caller)->peer()),
              EventKind::kMounted, **caller, request->name());
}

grpc::Status DevicesService::Unmount(grpc::ServerContext* context, const v1::UnmountRequest* request,
                                     v1::UnmountResponse*) {
  const auto caller = CallerOf(*context, sessions_);
  if (!caller.ok()) return ToGrpc(caller.status());
  return Done(broker_.mounts().Unmount(request->name(), (*caller)->peer()), EventKind::kUnmounted, **caller,
              request->name());
}

}  // namespace mapbroker::rpc
