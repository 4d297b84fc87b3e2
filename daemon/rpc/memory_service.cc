#include "daemon/rpc/memory_service.h"

#include "daemon/rpc/caller.h"
#include "daemon/rpc/status.h"

namespace mapbroker::rpc {
namespace {

v1::MappingKind ToProto(nommu::MappingKind kind) {
  switch (kind) {
    case nommu::MappingKind::kAnonymous:
      return v1::MAPPING_KIND_ANONYMOUS;
    case nommu::MappingKind::kSharedCopy:
      return v1::MAPPING_KIND_SHARED_COPY;
    case nommu::MappingKind::kPrivateCopy:
      return v1::MAPPING_KIND_PRIVATE_COPY;
    case nommu::MappingKind::kDirect:
      return v1::MAPPING_KIND_DIRECT;
  }
  return v1::MAPPING_KIND_UNSPECIFIED;
}

}  // namespace

grpc::Status MemoryService::Mmap(grpc::ServerContext* context, const v1::MmapRequest* request,
                                 v1::MmapResponse* response) {
  const auto caller = CallerOf(*context, sessions_);
  if (!caller.ok()) return ToGrpc(caller.status());
  const auto id = RequestOf(*context);
  if (!id.ok()) return ToGrpc(id.status());
  const nommu::MapRequest wanted{.length = request->length(),
                                 .prot = request->prot(),
                                 .flags = request->flags(),
                                 .offset = request->offset(),
                                 .address = request->address()};
  const auto granted = broker_.Mmap(**caller, wanted, request->fd(), *id);
  if (!granted.ok()) return ToGrpc(granted.status());
  response->set_address(granted->address);
  response->set_length(granted->length);
  response->set_room(granted->room);
  response->set_prot(request->prot());
  response->set_kind(ToProto(granted->kind));
  response->set_existing(granted->existing);
  return grpc::Status::OK;
}

grpc::Status MemoryService::Munmap(grpc::ServerContext* context, const v1::MunmapRequest* request,
                                   v1::MunmapResponse*) {
  const auto caller = CallerOf(*context, sessions_, /*gives_back=*/true);
  if (!caller.ok()) return ToGrpc(caller.status());
  const auto id = RequestOf(*context);
  if (!id.ok()) return ToGrpc(id.status());
  return ToGrpc(broker_.Munmap(**caller, request->address(), request->length(), *id));
}

grpc::Status MemoryService::Mremap(grpc::ServerContext* context, const v1::MremapRequest* request,
                                   v1::MremapResponse* response) {
  const auto caller = CallerOf(*context, sessions_);
  if (!caller.ok()) return ToGrpc(caller.status());
  const auto id = RequestOf(*context);
  if (!id.ok()) return ToGrpc(id.status());
  const auto length = broker_.Mremap(**caller,
                                     {.address = request->address(),
                                      .old_length = request->old_length(),
                                      .new_length = request->new_length(),
                                      .flags = request->flags(),
                                      .new_address = request->new_address()},
                                     *id);
  if (!length.ok()) return ToGrpc(length.status());
  response->set_address(request->address());
  response->set_length(*length);
  return grpc::Status::OK;
}

}  // namespace mapbroker::rpc
