#include "daemon/rpc/sysv_shm_service.h"

#include "daemon/rpc/caller.h"
#include "daemon/rpc/status.h"

namespace mapbroker::rpc {
namespace {

void ToProto(const SegmentStat& stat, v1::ShmSegment& to) {
  const backing::Segment& segment = stat.segment;
  to.set_id(segment.id);
  to.set_key(segment.key);
  to.set_size(segment.size);
  to.set_uid(segment.uid);
  to.set_gid(segment.gid);
  to.set_cuid(segment.cuid);
  to.set_cgid(segment.cgid);
  to.set_mode(segment.mode);
  to.set_nattch(stat.nattch);
  to.set_marked_destroyed(segment.marked_destroyed);
  to.set_cpid(segment.creator);
  to.set_lpid(segment.last);
  to.set_atime(segment.attached);
  to.set_dtime(segment.detached);
  to.set_ctime(segment.changed);
}

}  // namespace

grpc::Status SysvShmService::Shmget(grpc::ServerContext* context, const v1::ShmgetRequest* request,
                                    v1::ShmgetResponse* response) {
  const auto caller = CallerOf(*context, sessions_);
  if (!caller.ok()) return ToGrpc(caller.status());
  const auto id = broker_.Shmget(**caller, request->key(), request->size(), request->flags());
  if (!id.ok()) return ToGrpc(id.status());
  response->set_id(*id);
  return grpc::Status::OK;
}

grpc::Status SysvShmService::Shmat(grpc::ServerContext* context, const v1::ShmatRequest* request,
                                   v1::ShmatResponse* response) {
  const auto caller = CallerOf(*context, sessions_);
  if (!caller.ok()) return ToGrpc(caller.status());
  const auto id = RequestOf(*context);
  if (!id.ok()) return ToGrpc(id.status());
  const auto attached = broker_.Shmat(**caller, request->id(), request->address(), request->flags(), *id);
  if (!attached.ok()) return ToGrpc(attached.status());
  response->set_address(attached->grant.address);
  response->set_length(attached->grant.length);
  response->set_prot(attached->prot);
  return grpc::Status::OK;
}

grpc::Status SysvShmService::Shmdt(grpc::ServerContext* context, const v1::ShmdtRequest* request, v1::ShmdtResponse*) {
  const auto caller = CallerOf(*context, sessions_, /*gives_back=*/true);
  if (!caller.ok()) return ToGrpc(caller.status());
  const auto id = RequestOf(*context);
  if (!id.ok()) return ToGrpc(id.status());
  return ToGrpc(broker_.Shmdt(**caller, request->address(), *id));
}

grpc::Status SysvShmService::Stat(grpc::ServerContext* context, const v1::ShmStatRequest* request,
                                  v1::ShmSegment* response) {
  const auto caller = CallerOf(*context, sessions_);
  if (!caller.ok()) return ToGrpc(caller.status());
  const auto stat = broker_.ShmStat(**caller, request->id());
  if (!stat.ok()) return ToGrpc(stat.status());
  ToProto(*stat, *response);
  return grpc::Status::OK;
}

grpc::Status SysvShmService::Set(grpc::ServerContext* context, const v1::ShmSetRequest* request, v1::ShmSetResponse*) {
  const auto caller = CallerOf(*context, sessions_);
  if (!caller.ok()) return ToGrpc(caller.status());
  return ToGrpc(broker_.ShmSet(**caller, request->id(), request->uid(), request->gid(), request->mode()));
}

grpc::Status SysvShmService::Remove(grpc::ServerContext* context, const v1::ShmRemoveRequest* request,
                                    v1::ShmRemoveResponse*) {
  const auto caller = CallerOf(*context, sessions_);
  if (!caller.ok()) return ToGrpc(caller.status());
  return ToGrpc(broker_.ShmRemove(**caller, request->id()));
}

grpc::Status SysvShmService::List(grpc::ServerContext* context, const v1::ShmListRequest*,
                                  grpc::ServerWriter<v1::ShmSegment>* writer) {
  const absl::StatusOr<Charge> call = Admit(*context, sessions_);
  if (!call.ok()) return ToGrpc(call.status());
  for (const SegmentStat& stat : broker_.ListSegments()) {
    v1::ShmSegment segment;
    ToProto(stat, segment);
    if (!writer->Write(segment)) break;  // the reader has gone
  }
  return grpc::Status::OK;
}

}  // namespace mapbroker::rpc
