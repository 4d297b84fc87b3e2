#include "daemon/rpc/files_service.h"

#include <algorithm>
#include <cerrno>
#include <memory>
#include <string>
#include <utility>

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

void ToProto(const backing::FileStat& stat, v1::FileStat& to) {
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

absl::StatusOr<std::shared_ptr<backing::Backing>> FilesService::FileOf(const grpc::ServerContext& context,
                                                                       int fd) const {
  const auto caller = CallerOf(context, sessions_);
  if (!caller.ok()) return caller.status();
  const auto file = (*caller)->File(fd);
  if (file == nullptr || file->kind == nommu::File::Kind::kNotOpen) {
    return Refuse(EBADF, "F", absl::StrCat("the session has no open file of number ", fd));
  }
  // The call is under way as long as the file is used: reading may wait for the file's server.
  using Held = std::pair<std::shared_ptr<backing::Backing>, std::shared_ptr<session::Session>>;
  return std::shared_ptr<backing::Backing>(std::make_shared<Held>(file, *caller), file.get());
}

grpc::Status FilesService::Open(grpc::ServerContext* context, const v1::OpenRequest* request,
                                v1::OpenResponse* response) {
  const auto caller = CallerOf(*context, sessions_);
  if (!caller.ok()) return ToGrpc(caller.status());
  const auto fd =
      broker_.OpenFile(**caller, request->name(), static_cast<int>(request->flags()), request->mode() & 0777);
  if (!fd.ok()) return ToGrpc(fd.status());
  response->set_fd(*fd);
  return grpc::Status::OK;
}

grpc::Status FilesService::Close(grpc::ServerContext* context, const v1::CloseRequest* request, v1::CloseResponse*) {
  const auto caller = CallerOf(*context, sessions_, /*gives_back=*/true);
  if (!caller.ok()) return ToGrpc(caller.status());
  return ToGrpc(broker_.CloseFile(**caller, request->fd()));
}

grpc::Status FilesService::Ftruncate(grpc::ServerContext* context, const v1::FtruncateRequest* request,
                                     v1::FtruncateResponse*) {
  const auto file = FileOf(*context, request->fd());
  if (!file.ok()) return ToGrpc(file.status());
  if (request->size() < 0) return ToGrpc(Refuse(EINVAL, "F", "a file's size is not negative"));
  return ToGrpc(broker_.Ftruncate(**file, static_cast<std::uint64_t>(request->size())));
}

grpc::Status FilesService::Pread(grpc::ServerContext* context, const v1::PreadRequest* request,
                                 v1::PreadResponse* response) {
  const auto file = FileOf(*context, request->fd());
  if (!file.ok()) return ToGrpc(file.status());
  if (!(*file)->readable) return ToGrpc(Refuse(EBADF, "F", "the file is not open for reading"));
  std::string& data = *response->mutable_data();
  data.resize(std::min(request->length(), kMaxRead));
  const auto count = (*file)->Read(request->offset(), std::as_writable_bytes(std::span(data)));
  if (!count.ok()) return ToGrpc(count.status());
  data.resize(*count);
  return grpc::Status::OK;
}

grpc::Status FilesService::Pwrite(grpc::ServerContext* context, const v1::PwriteRequest* request, v1::PwriteResponse*) {
  const auto file = FileOf(*context, request->fd());
  if (!file.ok()) return ToGrpc(file.status());
  if (!(*file)->writable) return ToGrpc(Refuse(EBADF, "F", "the file is not open for writing"));
  return ToGrpc((*file)->Write(request->offset(), std::as_bytes(std::span(request->data()))));
}

grpc::Status FilesService::Fstat(grpc::ServerContext* context, const v1::FstatRequest* request,
                                 v1::FileStat* response) {
  const auto file = FileOf(*context, request->fd());
  if (!file.ok()) return ToGrpc(file.status());
  const auto stat = (*file)->Stat();
  if (!stat.ok()) return ToGrpc(stat.status());
  ToProto(*stat, *response);
  return grpc::Status::OK;
}

grpc::Status FilesService::Stat(grpc::ServerContext* context, const v1::StatRequest* request, v1::FileStat* response) {
  const absl::StatusOr<Charge> call = Admit(*context, sessions_);
  if (!call.ok()) return ToGrpc(call.status());
  const auto stat = broker_.StatFile(request->name());
  if (!stat.ok()) return ToGrpc(stat.status());
  ToProto(*stat, *response);
  return grpc::Status::OK;
}

grpc::Status FilesService::Unlink(grpc::ServerContext* context, const v1::UnlinkRequest* request, v1::UnlinkResponse*) {
  const auto caller = CallerOf(*context, sessions_);
  if (!caller.ok()) return ToGrpc(caller.status());
  return ToGrpc(broker_.UnlinkFile(request->name(), (*caller)->peer()));
}

grpc::Status FilesService::List(grpc::ServerContext* context, const v1::ListFilesRequest* request,
                                grpc::ServerWriter<v1::ListFilesResponse>* writer) {
  const absl::StatusOr<Charge> call = Admit(*context, sessions_);
  if (!call.ok()) return ToGrpc(call.status());
  std::string after;
  for (;;) {
    const std::vector<backing::FileStat> portion = broker_.ListFiles(request->prefix(), after, kPortion);
    if (portion.empty()) return grpc::Status::OK;
    v1::ListFilesResponse response;
    for (const backing::FileStat& stat : portion) ToProto(stat, *response.add_files());
    after = portion.back().name;
    if (!writer->Write(response)) return grpc::Status::OK;  // the reader has gone
  }
}

}  // namespace mapbroker::rpc
