// What the kernel tells of a process: /proc/PID.
#pragma once

#include <sys/types.h>

#include <string>

#include "absl/status/status.h"
#include "daemon/credentials.h"

namespace mapbroker {

// The name of its command, empty if it is gone.
std::string CommandOf(pid_t pid);

// When it was started, in clock ticks since the machine was: with the pid it names a process once and for all. 0: gone.
std::uint64_t StartTimeOf(pid_t pid);

// Whether another process traces it at this moment (S2).
bool IsTraced(pid_t pid);

// Whether `who` may look at and change the memory of process `pid` (X5), as ptrace(2) decides: it is of the same user
// and group and may be dumped, or `who` is root. ESRCH, EPERM.
absl::Status MayTrace(const Credentials& who, pid_t pid);

}  // namespace mapbroker
