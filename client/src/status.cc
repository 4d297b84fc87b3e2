#include "client/src/status.h"

#include <cerrno>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"

namespace mapbroker {
namespace {

constexpr char kErrnoPayload[] = "mapbroker.errno";
constexpr char kRulePayload[] = "mapbroker.rule";

absl::Status WithPayload(absl::StatusCode code, int error, const std::string& sentence, const std::string& rule) {
  absl::Status status(code, sentence);
  status.SetPayload(kErrnoPayload, absl::Cord(std::to_string(error)));
  if (!rule.empty()) status.SetPayload(kRulePayload, absl::Cord(rule));
  return status;
}

}  // namespace

absl::Status MakeStatus(int error, const std::string& sentence, const std::string& rule) {
  const absl::StatusCode code = absl::ErrnoToStatusCode(error);
  // A refusal with EAGAIN is an answer; Unavailable means that there is none.
  return WithPayload(code == absl::StatusCode::kUnavailable ? absl::StatusCode::kAborted : code, error, sentence, rule);
}

absl::Status NoDaemon(int error, const std::string& sentence) {
  return WithPayload(absl::StatusCode::kUnavailable, error, sentence, "");
}

absl::Status FromWire(const v1::Error& error) {
  return MakeStatus(error.errno_value() != 0 ? error.errno_value() : EIO, error.explanation(), error.rule());
}

int ErrnoOf(const absl::Status& status) {
  if (status.ok()) return 0;
  const auto payload = status.GetPayload(kErrnoPayload);
  int error = EIO;
  if (payload) static_cast<void>(absl::SimpleAtoi(std::string(*payload), &error));
  return error;
}

std::string RuleOf(const absl::Status& status) {
  const auto payload = status.GetPayload(kRulePayload);
  return payload ? std::string(*payload) : std::string();
}

}  // namespace mapbroker
