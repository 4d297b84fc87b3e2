// What mapbrokerd's exit status says; documented in mapbrokerd(8).
#pragma once

namespace mapbroker {

enum ExitStatus : int {
  kStopped = 0,        // was asked to stop and did
  kFailed = 1,         // the runtime directory, a socket or the pool could not be had
  kUsage = 2,          // the command line or the configuration file is wrong
  kNoMemory = 3,       // the pool's memory is not there
  kAlreadyServed = 4,  // another daemon serves the runtime directory or the pool
};

}  // namespace mapbroker
