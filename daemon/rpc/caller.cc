#include "daemon/rpc/caller.h"

#include <cerrno>
#include <string>

#include "daemon/nommu/refusal.h"
#include "proto/handoff_packet.h"

namespace mapbroker::rpc {

absl::StatusOr<std::shared_ptr<session::Session>> CallerOf(const grpc::ServerContextBase& context,
                                                           const session::SessionTable& sessions) {
  const auto& metadata = context.client_metadata();
  const auto token = metadata.find(kSessionMetadata);
  if (token == metadata.end()) {
    return nommu::Refuse(EPERM, "", "the call carries no session token: open a session on the handoff socket first");
  }
  auto session = sessions.Find(std::string(token->second.data(), token->second.size()));
  if (session == nullptr) {
    return nommu::Refuse(ESRCH, "",
                         "no session has this token: it has ended, or the daemon was restarted; connect anew");
  }
  return session;
}

}  // namespace mapbroker::rpc
