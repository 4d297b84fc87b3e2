// Who makes a call: the session whose token it carries.
#pragma once

#include <grpcpp/server_context.h>

#include <memory>

#include "absl/status/statusor.h"
#include "daemon/session/session_table.h"

namespace mapbroker::rpc {

// Null if it carries none that is a session's.
std::shared_ptr<session::Session> SessionOf(const grpc::ServerContextBase& context,
                                            const session::SessionTable& sessions);

// The same, for a call that needs one and counts as the session's. EPERM if the call carries no token, ESRCH if no
// session has it, EAGAIN if its user makes more calls than he may. The call counts as under way until what is returned
// is destroyed. One that `gives_back` counts, but is not refused for that reason.
absl::StatusOr<std::shared_ptr<session::Session>> CallerOf(const grpc::ServerContextBase& context,
                                                           const session::SessionTable& sessions,
                                                           bool gives_back = false);

// The same for a call that needs no session: of the user whose token it carries, or of all together who have none.
// EAGAIN.
absl::StatusOr<Charge> Admit(const grpc::ServerContextBase& context, const session::SessionTable& sessions);

// Its number, if it may be made again. EINVAL if that is malformed.
absl::StatusOr<session::RequestId> RequestOf(const grpc::ServerContextBase& context);

}  // namespace mapbroker::rpc
