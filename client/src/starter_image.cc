#include "client/src/starter_image.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "client/src/status.h"
#include "shm_backend/unique_fd.h"

#ifdef MAPBROKER_STARTER
asm(".pushsection .rodata, \"a\", @progbits\n"
    ".hidden mapbroker_starter, mapbroker_starter_end\n"
    ".globl mapbroker_starter, mapbroker_starter_end\n"
    "mapbroker_starter: .incbin \"" MAPBROKER_STARTER
    "\"\n"
    "mapbroker_starter_end:\n"
    ".popsection");
extern "C" const char mapbroker_starter[], mapbroker_starter_end[];
#endif

namespace mapbroker {
namespace {

#ifndef MFD_EXEC
#define MFD_EXEC 0x10U  // Linux 6.3; older headers lack it
#endif

std::string Image() {
#ifdef MAPBROKER_STARTER
  return {mapbroker_starter, mapbroker_starter_end};
#else
  return {};
#endif
}

// A file of no name that can be executed and that nobody can change any more.
absl::StatusOr<shm::UniqueFd> SealedFile(const std::string& contents) {
  constexpr char kName[] = "mapbroker-starter";
  constexpr unsigned kFlags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
  shm::UniqueFd file(memfd_create(kName, kFlags | MFD_EXEC));
  // A kernel that does not know the flag makes all such files executable.
  if (!file && errno == EINVAL) file.reset(memfd_create(kName, kFlags));
  if (!file) {
    return MakeStatus(errno, absl::StrCat("no executable memory file can be made: ", std::strerror(errno),
                                          "; see the sysctl vm.memfd_noexec"));
  }
  constexpr int kSeals = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE;
  if (write(file.get(), contents.data(), contents.size()) != static_cast<ssize_t>(contents.size()) ||
      fcntl(file.get(), F_ADD_SEALS, kSeals) != 0) {
    return MakeStatus(errno, absl::StrCat("the starter's file cannot be written: ", std::strerror(errno)));
  }
  return file;
}

}  // namespace

absl::Status ExecuteStarter(const starter::Plan& plan, char* const argv[], char* const envp[]) {
  std::string image = Image();
  const std::size_t at = image.find(std::string(starter::kMagic, sizeof(starter::kMagic)));
  if (at == std::string::npos) {
    return MakeStatus(ENOEXEC, "programs run out of the pool on x86-64 only so far: use --dry-run here");
  }
  starter::Plan written = plan;
  std::memcpy(written.magic, starter::kMagic, sizeof(starter::kMagic));
  std::memcpy(image.data() + at, &written, sizeof(written));
  const absl::StatusOr<shm::UniqueFd> file = SealedFile(image);
  if (!file.ok()) return file.status();
  // execveat(2) of the descriptor needs no /proc, which fexecve(3) may.
  syscall(SYS_execveat, file->get(), "", argv, envp, AT_EMPTY_PATH);
  const int error = errno;
  return MakeStatus(error, absl::StrCat("execve failed: ", std::strerror(error)));
}

}  // namespace mapbroker
