// How the rules say no: the kernel's errno, the rule's number and one sentence.
#pragma once

#include <string>

#include "absl/status/status.h"

namespace mapbroker::nommu {

// A status that carries `error` (an errno) and `rule` (its number in semantics.md, "M5"; empty where no rule of
// mapping refused). `sentence` says what was wrong and what to do instead.
absl::Status Refuse(int error, const std::string& rule, const std::string& sentence);

// The errno of a refusal; EIO for a status that did not come from Refuse, 0 for OK.
int ErrnoOf(const absl::Status& status);

// The rule's number, empty if there is none.
std::string RuleOf(const absl::Status& status);

}  // namespace mapbroker::nommu
