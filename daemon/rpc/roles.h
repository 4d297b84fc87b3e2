// Who may look at the daemon and who may change it.
#pragma once

#include <grpcpp/security/auth_context.h>
#include <grpcpp/server_context.h>

#include <string>

#include "absl/status/status.h"
#include "daemon/config.h"
#include "daemon/session/session_table.h"

namespace mapbroker::rpc {

// The names in the certificate of a caller over TCP; empty for others.
std::string CertificateNameOf(const grpc::ServerContextBase& context);

std::string NameOf(const grpc::AuthContext& peer);

// On the Unix socket everybody may. EACCES: none of the certificate's names has a role.
absl::Status MayInspect(const Roles& roles, const grpc::AuthContext& peer);

// EPERM: over TCP none of the names is an administrator's; on the Unix socket the session is neither root's nor of the
// daemon's own user.
absl::Status MayAdminister(const Roles& roles, const grpc::ServerContextBase& context,
                           const session::SessionTable& sessions);

}  // namespace mapbroker::rpc
