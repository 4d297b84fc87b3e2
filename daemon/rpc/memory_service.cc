#include "daemon/rpc/memory_service.h"

#include <sys/mman.h>
#include <sys/sysmacros.h>

#include <string>

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

void ToProto(const ListedMapping& listed, v1::MappingRow& row) {
  const nommu::Row& from = listed.row;
  row.set_start(from.start);
  row.set_end(from.end);
  const auto letter = [&](int bit, char name) { return (from.prot & bit) != 0 ? name : '-'; };
  row.set_perms(
      std::string{letter(PROT_READ, 'r'), letter(PROT_WRITE, 'w'), letter(PROT_EXEC, 'x'), from.shared ? 'S' : 'p'});
  row.set_offset(from.offset);
  if (from.file != nullptr) {
    row.set_dev_major(major(from.file->id.device));
    row.set_dev_minor(minor(from.file->id.device));
    row.set_inode(from.file->id.inode);
    row.set_path(listed.path);
  }
  for (const std::int32_t pid : from.pids) row.add_pids(pid);
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

grpc::Status MemoryService::ListMappings(grpc::ServerContext* context, const v1::ListMappingsRequest* request,
                                         grpc::ServerWriter<v1::ListMappingsResponse>* writer) {
  const absl::StatusOr<Charge> call = Admit(*context, sessions_);
  if (!call.ok()) return ToGrpc(call.status());
  nommu::MemoryMap::Cursor cursor;
  for (;;) {
    const auto portion = broker_.List(request->pid(), cursor);
    if (!portion.ok()) return ToGrpc(portion.status());
    if (portion->empty()) return grpc::Status::OK;
    v1::ListMappingsResponse response;
    for (const ListedMapping& listed : *portion) ToProto(listed, *response.add_rows());
    if (!writer->Write(response)) return grpc::Status::OK;  // the reader has gone
  }
}

grpc::Status MemoryService::GetPoolStatistics(grpc::ServerContext* context, const v1::GetPoolStatisticsRequest*,
                                              v1::PoolStatistics* response) {
  const absl::StatusOr<Charge> call = Admit(*context, sessions_);
  if (!call.ok()) return ToGrpc(call.status());
  const Statistics statistics = broker_.GetStatistics();
  const std::uint64_t mapped = statistics.map.mapped_pages, held = statistics.map.region_pages;
  response->set_pool_size(statistics.pool.total);
  response->set_used(statistics.pool.total - statistics.pool.free - statistics.pool.scrubbing);
  response->set_free(statistics.pool.free);
  response->set_scrubbing(statistics.pool.scrubbing);
  response->set_largest_free_run(statistics.pool.largest_free_run);
  response->set_regions(statistics.map.regions);
  response->set_mappings(statistics.map.mappings);
  response->set_sessions(statistics.map.spaces);
  response->set_saved_by_sharing(mapped > held ? (mapped - held) * nommu::kPageSize : 0);
  response->set_filling(statistics.filling);
  response->set_fills_total(statistics.fills_total);
  response->set_prefaulted(statistics.pool.prefaulted);
  response->set_profile(broker_.profile().name);
  return grpc::Status::OK;
}

}  // namespace mapbroker::rpc
