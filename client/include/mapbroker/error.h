// How errors of this library are read.
//
// Every function returns absl::Status or absl::StatusOr and never throws. The status's message is one sentence that
// says what was wrong and what to do instead; its errno is the one the kernel would give.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "mapbroker/export.h"

namespace mapbroker {

// The errno (errno.h) of a failed call: what the rules answered, or ECONNREFUSED/ENOENT/ECONNRESET where no daemon did.
// 0 for an OK status; EIO for a status that did not come from this library. Thread-safe.
MAPBROKER_EXPORT int ErrnoOf(const absl::Status& status);

// The number of the rule that refused, for example "M5" (docs/semantics.md); empty if none did. Thread-safe.
MAPBROKER_EXPORT std::string RuleOf(const absl::Status& status);

}  // namespace mapbroker
