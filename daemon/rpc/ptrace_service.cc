#include "daemon/rpc/ptrace_service.h"

#include <cerrno>

#include "absl/strings/str_cat.h"
#include "daemon/nommu/refusal.h"
#include "daemon/process.h"
#include "daemon/rpc/caller.h"
#include "daemon/rpc/status.h"

namespace mapbroker::rpc {

absl::Status PtraceService::MayTrace(const session::Session& caller, pid_t pid) const {
  if (caller.peer().pid == pid) return absl::OkStatus();
  if (absl::Status status = mapbroker::MayTrace(caller.peer(), pid); !status.ok()) return status;
  if (sessions_.HasProcess(pid)) return absl::OkStatus();
  return nommu::Refuse(ESRCH, "X5", absl::StrCat("process ", pid, " has no session with this daemon"));
}

grpc::Status PtraceService::SetTraced(grpc::ServerContext* context, const v1::SetTracedRequest* request,
                                      v1::SetTracedResponse*) {
  const auto caller = CallerOf(*context, sessions_);
  if (!caller.ok()) return ToGrpc(caller.status());
  const pid_t pid = request->pid() == 0 ? (*caller)->peer().pid : request->pid();
  if (absl::Status status = MayTrace(**caller, pid); !status.ok()) return ToGrpc(status);
  sessions_.SetTraced(pid, request->traced());
  return grpc::Status::OK;
}

grpc::Status PtraceService::Peek(grpc::ServerContext* context, const v1::PeekRequest* request,
                                 v1::PeekResponse* response) {
  const auto caller = CallerOf(*context, sessions_);
  if (!caller.ok()) return ToGrpc(caller.status());
  if (absl::Status status = MayTrace(**caller, request->pid()); !status.ok()) return ToGrpc(status);
  auto data = broker_.Peek(request->pid(), request->address(), request->length());
  if (!data.ok()) return ToGrpc(data.status());
  response->set_data(*std::move(data));
  return grpc::Status::OK;
}

grpc::Status PtraceService::Poke(grpc::ServerContext* context, const v1::PokeRequest* request,
                                 v1::PokeResponse* response) {
  const auto caller = CallerOf(*context, sessions_);
  if (!caller.ok()) return ToGrpc(caller.status());
  if (absl::Status status = MayTrace(**caller, request->pid()); !status.ok()) return ToGrpc(status);
  if ((*caller)->read_only()) {
    return ToGrpc(nommu::Refuse(EACCES, "X5", "the session is read-only: connect without read_only to write memory"));
  }
  const auto length = broker_.Poke(request->pid(), request->address(), request->data());
  if (!length.ok()) return ToGrpc(length.status());
  response->set_length(*length);
  return grpc::Status::OK;
}

}  // namespace mapbroker::rpc
