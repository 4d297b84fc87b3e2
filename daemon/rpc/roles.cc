#include "daemon/rpc/roles.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "daemon/nommu/refusal.h"
#include "daemon/rpc/caller.h"

namespace mapbroker::rpc {
namespace {

using nommu::Refuse;

// What the certificate says its holder is: its alternative names if it has any, else its common name.
std::vector<std::string> NamesOf(const grpc::AuthContext& peer) {
  std::vector<std::string> names;
  if (!peer.IsPeerAuthenticated()) return names;
  for (const grpc::string_ref& name : peer.GetPeerIdentity()) names.emplace_back(name.data(), name.size());
  return names;
}

bool AnyIn(const std::vector<std::string>& names, const std::vector<std::string>& wanted) {
  return std::find_first_of(names.begin(), names.end(), wanted.begin(), wanted.end()) != names.end();
}

}  // namespace

std::string CertificateNameOf(const grpc::ServerContextBase& context) { return NameOf(*context.auth_context()); }

std::string NameOf(const grpc::AuthContext& peer) { return absl::StrJoin(NamesOf(peer), ", "); }

absl::Status MayInspect(const Roles& roles, const grpc::AuthContext& peer) {
  const std::vector<std::string> names = NamesOf(peer);
  if (AnyIn(names, roles.inspectors) || AnyIn(names, roles.administrators)) return absl::OkStatus();
  return Refuse(EACCES, "",
                absl::StrCat("the certificate is of ", absl::StrJoin(names, ", "),
                             ", who is named neither in tcp.inspectors nor in tcp.administrators of the daemon"));
}

absl::Status MayAdminister(const Roles& roles, const grpc::ServerContextBase& context,
                           const session::SessionTable& sessions) {
  if (context.auth_context()->IsPeerAuthenticated()) {
    const std::vector<std::string> names = NamesOf(*context.auth_context());
    if (AnyIn(names, roles.administrators)) return absl::OkStatus();
    return Refuse(EPERM, "",
                  absl::StrCat("the certificate is of ", absl::StrJoin(names, ", "),
                               ", who is not named in tcp.administrators of the daemon"));
  }
  const auto caller = CallerOf(context, sessions);
  if (!caller.ok()) return caller.status();
  const uid_t uid = (*caller)->peer().uid;
  if (uid == 0 || uid == geteuid()) return absl::OkStatus();
  return Refuse(EPERM, "", absl::StrCat("only root and the daemon's own user may do this, not user ", uid));
}

}  // namespace mapbroker::rpc
