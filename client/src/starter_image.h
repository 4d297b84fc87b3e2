// The last step of exec: replaces this process's program by the starter (client/starter).
#pragma once

#include "absl/status/status.h"
#include "client/starter/plan.h"

namespace mapbroker {

// Executes the starter with this plan, whose magic need not be set, and with `argv` and `envp` as execve(2) has them.
// Returns only on failure, with execve's errno; ENOEXEC on machines that the starter is not made for.
absl::Status ExecuteStarter(const starter::Plan& plan, char* const argv[], char* const envp[]);

}  // namespace mapbroker
