// The C face of exec.
#include <cerrno>

#include "client/src/c_session.h"
#include "client/src/status.h"
#include "mapbroker/exec.h"
#include "mapbroker/mapbroker.h"

extern "C" int mb_exec(const char* path, char* const argv[], char* const envp[]) {
  using mapbroker::c_face::Fail;
  Fail(path == nullptr ? mapbroker::MakeStatus(EFAULT, "no path was given") : mapbroker::Exec(path, argv, envp));
  return -1;
}
