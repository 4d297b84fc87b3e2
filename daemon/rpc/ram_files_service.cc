#include "daemon/rpc/ram_files_service.h"

#include <algorithm>
#include <cerrno>
#include <string>

#include "absl/strings/str_cat.h"
#include "daemon/nommu/refusal.h"
#include "daemon/rpc/caller.h"
#include "daemon/rpc/status.h"

namespace mapbroker::rpc {
namespace {

using nommu::Refuse;

// Bytes of one Pread: an answer that needs no streaming and no large buffers.
constexpr std::uint64_t kMaxRead = 1 << 20;

// Files in one message of a listing.
constexpr std::size_t kPortion = 256;

void ToProto(const backing::RamStat& stat, v1::RamStat& to) {
  to.set_name(stat.name);
  to.set_inode(stat.inode);
  to.set_uid(stat.uid);
  to.set_gid(stat.gid);
  to.set_mode(stat.mode);
  to.set_size(stat.size);
  to.set_allocated(stat.allocated);
  to.set_runs(stat.runs);
}

}  // namespace

absl::StatusOr<std::shared_ptr<backing::RamFile>> RamFilesService::FileOf(const grpc::ServerContext& context,
                                                                          int fd) const {
  const auto caller = CallerOf(context, sessions_);
  if (!caller.ok()) return caller.status();
  auto file = std::dynamic_pointer_cast<backing::RamFile>((*caller)->File(fd));
  if (file == nullptr || file->kind != nommu::File::Kind::kMappable) {
    return Refuse(EBADF, "F", absl::StrCat("the session has no open ram file of number ", fd));
  }
  return file;
}

grpc::Status RamFilesService::Open(grpc::ServerContext* context, const v1::RamOpenRequest* request,
                                   v1::RamOpenResponse* response) {
  const auto caller = CallerOf(*context, sessions_);
  if (!caller.ok()) return ToGrpc(caller.status());
  const auto fd =
      broker_.OpenRamFile(**caller, request->name(), static_cast<int>(request->flags()), request->mode() & 0777);
  if (!fd.ok()) return ToGrpc(fd.status());
  response->set_fd(*fd);
  return grpc::Status::OK;
}

grpc::Status RamFilesService::Close(grpc::ServerContext* context, const v1::RamCloseRequest* request,
                                    v1::RamCloseResponse*) {
  const auto caller = CallerOf(*context, sessions_);
  if (!caller.ok()) return ToGrpc(caller.status());
  return ToGrpc((*caller)->CloseFile(request->fd()));
}

grpc::Status RamFilesService::Ftruncate(grpc::ServerContext* context, const v1::RamFtruncateRequest* request,
                                        v1::RamFtruncateResponse*) {
  const auto file = FileOf(*context, request->fd());
  if (!file.ok()) return ToGrpc(file.status());
  if (request->size() < 0) return ToGrpc(Refuse(EINVAL, "F", "a file's size is not negative"));
  return ToGrpc(broker_.Ftruncate(**file, static_cast<std::uint64_t>(request->size())));
}

grpc::Status RamFilesService::Pread(grpc::ServerContext* context, const v1::RamPreadRequest* request,
                                    v1::RamPreadResponse* response) {
  const auto file = FileOf(*context, request->fd());
  if (!file.ok()) return ToGrpc(file.status());
  if (!(*file)->readable) return ToGrpc(Refuse(EBADF, "F", "the ram file is not open for reading"));
  std::string& data = *response->mutable_data();
  data.resize(std::min(request->length(), kMaxRead));
  data.resize((*file)->node().Read(request->offset(), std::as_writable_bytes(std::span(data))));
  return grpc::Status::OK;
}

grpc::Status RamFilesService::Pwrite(grpc::ServerContext* context, const v1::RamPwriteRequest* request,
                                     v1::RamPwriteResponse*) {
  const auto file = FileOf(*context, request->fd());
  if (!file.ok()) return ToGrpc(file.status());
  if (!(*file)->writable) return ToGrpc(Refuse(EBADF, "F", "the ram file is not open for writing"));
  return ToGrpc((*file)->node().Write(request->offset(), (*file)->append(), std::as_bytes(std::span(request->data()))));
}

grpc::Status RamFilesService::Fstat(grpc::ServerContext* context, const v1::RamFstatRequest* request,
                                    v1::RamStat* response) {
  const auto file = FileOf(*context, request->fd());
  if (!file.ok()) return ToGrpc(file.status());
  ToProto((*file)->node().Stat(), *response);
  return grpc::Status::OK;
}

grpc::Status RamFilesService::Stat(grpc::ServerContext*, const v1::RamStatRequest* request, v1::RamStat* response) {
  const auto stat = broker_.ram_files().Stat(request->name());
  if (!stat.ok()) return ToGrpc(stat.status());
  ToProto(*stat, *response);
  return grpc::Status::OK;
}

grpc::Status RamFilesService::Unlink(grpc::ServerContext* context, const v1::RamUnlinkRequest* request,
                                     v1::RamUnlinkResponse*) {
  const auto caller = CallerOf(*context, sessions_);
  if (!caller.ok()) return ToGrpc(caller.status());
  return ToGrpc(broker_.ram_files().Unlink(request->name(), (*caller)->peer()));
}

grpc::Status RamFilesService::List(grpc::ServerContext*, const v1::RamListRequest* request,
                                   grpc::ServerWriter<v1::RamListResponse>* writer) {
  std::string after;
  for (;;) {
    const std::vector<backing::RamStat> portion = broker_.ram_files().List(request->prefix(), after, kPortion);
    if (portion.empty()) return grpc::Status::OK;
    v1::RamListResponse response;
    for (const backing::RamStat& stat : portion) ToProto(stat, *response.add_files());
    after = portion.back().name;
    if (!writer->Write(response)) return grpc::Status::OK;  // the reader has gone
  }
}

}  // namespace mapbroker::rpc
