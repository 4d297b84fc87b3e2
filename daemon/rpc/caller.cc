#include "daemon/rpc/caller.h"

#include <cerrno>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "daemon/nommu/refusal.h"
#include "proto/handoff_packet.h"

namespace mapbroker::rpc {

namespace {

absl::StatusOr<Charge> Begin(Account* account, bool gives_back) {
  if (account == nullptr) return Charge();
  if (absl::Status status = account->TakeRequest(gives_back); !status.ok()) return status;
  return gives_back ? Charge::Add(account, Resource::kCalls, 1) : Charge::Take(account, Resource::kCalls, 1);
}

}  // namespace

absl::StatusOr<std::shared_ptr<session::Session>> CallerOf(const grpc::ServerContextBase& context,
                                                           const session::SessionTable& sessions, bool gives_back) {
  if (context.client_metadata().count(kSessionMetadata) == 0) {
    return nommu::Refuse(EPERM, "", "the call carries no session token: open a session on the handoff socket first");
  }
  auto session = SessionOf(context, sessions);
  if (session == nullptr) {
    return nommu::Refuse(ESRCH, "",
                         "no session has this token: it has ended, or the daemon was restarted; connect anew");
  }
  absl::StatusOr<Charge> call = Begin(session->account(), gives_back);
  if (!call.ok()) return call.status();
  session->CountCall();
  // What is held is the session and the call.
  session::Session* const caller = session.get();
  auto held =
      std::make_shared<std::pair<std::shared_ptr<session::Session>, Charge>>(std::move(session), *std::move(call));
  return std::shared_ptr<session::Session>(std::move(held), caller);
}

absl::StatusOr<Charge> Admit(const grpc::ServerContextBase& context, const session::SessionTable& sessions) {
  const auto session = SessionOf(context, sessions);
  return Begin(session != nullptr ? session->account() : sessions.nobody(), false);
}

std::shared_ptr<session::Session> SessionOf(const grpc::ServerContextBase& context,
                                            const session::SessionTable& sessions) {
  const auto token = context.client_metadata().find(kSessionMetadata);
  if (token == context.client_metadata().end()) return nullptr;
  return sessions.Find(std::string(token->second.data(), token->second.size()));
}

absl::StatusOr<session::RequestId> RequestOf(const grpc::ServerContextBase& context) {
  session::RequestId request;
  const auto found = context.client_metadata().find(kRequestMetadata);
  if (found == context.client_metadata().end()) return request;
  const std::vector<std::string> words =
      absl::StrSplit(absl::string_view(found->second.data(), found->second.size()), ' ');
  if (words.size() < 2 || words.size() > 3 || !absl::SimpleAtoi(words[0], &request.id) ||
      !absl::SimpleAtoi(words[1], &request.done) || (words.size() == 3 && words[2] != "again")) {
    return nommu::Refuse(EINVAL, "", "mapbroker-request is two numbers, and \"again\" or not");
  }
  request.again = words.size() == 3;
  return request;
}

}  // namespace mapbroker::rpc
