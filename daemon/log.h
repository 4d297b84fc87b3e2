// The daemon's log: lines for people on standard error, records with fields where that is journald's.
//
// spdlog is the one way in, for events and for all else; what is said of an event carries the event's fields.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "daemon/events.h"
#include "spdlog/common.h"

namespace mapbroker {

// Before any thread is started. Fields go to journald where JOURNAL_STREAM names what standard error is.
void StartLog(spdlog::level::level_enum level);

// "debug" and so on; EINVAL.
absl::StatusOr<spdlog::level::level_enum> ParseLogLevel(const std::string& name);
// The name of the level that was.
std::string ExchangeLogLevel(spdlog::level::level_enum level);

// Whether anything of this kind may be logged at the level that is set.
bool IsLogged(EventKind kind);
// If its level is not below the one that is set: what people did, and what went wrong, at info and above, single
// mappings and refusals at debug, since a client can make as many of them as it likes.
void Log(const Event& event);

// One line, whatever names it holds.
std::string TextOf(const Event& event);

}  // namespace mapbroker
