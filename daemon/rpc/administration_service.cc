#include "daemon/rpc/administration_service.h"

#include <cerrno>
#include <string>

#include "absl/strings/str_cat.h"
#include "daemon/log.h"
#include "daemon/nommu/refusal.h"
#include "daemon/rpc/caller.h"
#include "daemon/rpc/status.h"

namespace mapbroker::rpc {

// The event is the administrator's.
void AdministrationService::Tell(const grpc::ServerContext& context, const std::string& what) {
  events_.Tell(EventKind::kAdministered, [&] {
    Event event{.kind = EventKind::kAdministered, .peer = CertificateNameOf(context), .sentence = what};
    if (const auto caller = SessionOf(context, sessions_)) {
      event.session = caller->id();
      event.pid = caller->peer().pid;
      event.uid = caller->peer().uid;
    }
    return event;
  });
}

grpc::Status AdministrationService::EndSession(grpc::ServerContext* context, const v1::EndSessionRequest* request,
                                               v1::EndSessionResponse*) {
  if (absl::Status status = MayAdminister(roles_, *context, sessions_); !status.ok()) return ToGrpc(status);
  const auto ended = sessions_.FindById(request->session());
  const absl::Status status = sessions_.Revoke(request->session(), request->kill());
  if (ended != nullptr && ended->revoked()) {
    Tell(*context, absl::StrCat("ended session ", ended->id(), request->kill() ? ", with its process" : ""));
    events_.Tell(EventKind::kSessionRevoked, [&] {
      return Event{.kind = EventKind::kSessionRevoked,
                   .session = ended->id(),
                   .pid = ended->peer().pid,
                   .uid = ended->peer().uid};
    });
  }
  return ToGrpc(status);
}

grpc::Status AdministrationService::SetLogLevel(grpc::ServerContext* context, const v1::SetLogLevelRequest* request,
                                                v1::SetLogLevelResponse* response) {
  if (absl::Status status = MayAdminister(roles_, *context, sessions_); !status.ok()) return ToGrpc(status);
  const auto level = ParseLogLevel(request->level());
  if (!level.ok()) return ToGrpc(level.status());
  response->set_previous(ExchangeLogLevel(*level));
  Tell(*context, absl::StrCat("set the log level to ", request->level()));
  return grpc::Status::OK;
}

}  // namespace mapbroker::rpc
