#include "daemon/nommu/refusal.h"

#include <cerrno>
#include <optional>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"

namespace mapbroker::nommu {
namespace {

constexpr char kErrnoPayload[] = "mapbroker.errno";
constexpr char kRulePayload[] = "mapbroker.rule";

}  // namespace

absl::Status Refuse(int error, const std::string& rule, const std::string& sentence) {
  absl::Status status(absl::ErrnoToStatusCode(error), sentence);
  status.SetPayload(kErrnoPayload, absl::Cord(std::to_string(error)));
  if (!rule.empty()) status.SetPayload(kRulePayload, absl::Cord(rule));
  return status;
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

}  // namespace mapbroker::nommu
