// What all who write to the ledger share: its tables, of which record.proto says what each holds, and how they refuse.
#pragma once

#include <cerrno>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "daemon/nommu/refusal.h"

namespace mapbroker {

enum Table : unsigned {
  kHeader,
  kDevices,
  kMounts,
  kSessions,
  kSessionFiles,
  kRegions,
  kMappings,
  kRamNodes,
  kPieces,
  kSegments,
  kResults,
  kTables  // how many there are
};

// `what` cannot be recorded and so is not done.
inline absl::Status CannotRecord(const std::string& what, const std::string& rule = "") {
  return nommu::Refuse(ENOSPC, rule, absl::StrCat(what, " cannot be recorded: make room in the runtime directory"));
}

// The ledger is damaged.
inline absl::Status Contradiction(const std::string& what) {
  return absl::DataLossError(absl::StrCat("the ledger contradicts itself: ", what));
}

template <typename Message>
absl::StatusOr<Message> ParseRecord(std::string_view value) {
  Message message;
  if (message.ParseFromArray(value.data(), static_cast<int>(value.size()))) return message;
  return Contradiction("a record cannot be read");
}

}  // namespace mapbroker
