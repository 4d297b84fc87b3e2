#include "daemon/session/wire_error.h"

#include <cstring>
#include <string>

#include "daemon/nommu/refusal.h"

namespace mapbroker::session {

v1::Error ToWireError(const absl::Status& status) {
  v1::Error error;
  error.set_errno_value(nommu::ErrnoOf(status));
  if (const char* name = strerrorname_np(error.errno_value()); name != nullptr) error.set_errno_name(name);
  error.set_rule(nommu::RuleOf(status));
  error.set_explanation(std::string(status.message()));
  return error;
}

}  // namespace mapbroker::session
