// Programs that run out of the pool (X4): what their memory will be, and exec itself. How to build such programs:
// docs/exec.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "mapbroker/export.h"

namespace mapbroker {

// Where the memory of a mapping of a program comes from.
enum class ProgramMemory {
  kShared,  // the file's bytes, one copy for all processes that run the file (S3)
  kCopied,  // the file's bytes, a copy for each process (S7), zeros behind them
  kZeroed,  // zeros for each process (S1)
};

// One call to mmap that loading makes.
struct ProgramMapping {
  ProgramMemory memory = ProgramMemory::kZeroed;
  int prot = 0;                   // PROT_*
  std::uint64_t offset = 0;       // bytes from the start of the file, a multiple of the page size
  std::uint64_t length = 0;       // bytes, whole pages
  std::uint64_t file_length = 0;  // bytes from its start that the file gives; 0 where all is zero
};

// What the program sees of a mapping.
struct ProgramPiece {
  std::string name;           // text, rodata, data, bss, stack
  std::uint64_t address = 0;  // bytes from the start of the program's image; of a stack that has its own place, 0
  std::uint64_t length = 0;   // bytes
  int prot = 0;               // PROT_*
  std::size_t mapping = 0;    // index in LoadMap::mappings
  std::uint64_t start = 0;    // bytes from the start of that mapping
};

struct LoadMap {
  std::string format;   // ELF or bFLT
  std::string machine;  // such as x86-64; empty for bFLT, which does not say
  std::vector<ProgramMapping> mappings;
  std::vector<ProgramPiece> pieces;
  std::vector<std::string> notes;  // one sentence each, for people

  // Bytes that all instances have in common, and those that each has for itself.
  std::uint64_t shared_bytes() const { return Sum(true); }
  std::uint64_t instance_bytes() const { return Sum(false); }

 private:
  std::uint64_t Sum(bool shared) const {
    std::uint64_t bytes = 0;
    for (const ProgramMapping& mapping : mappings) {
      if ((mapping.memory == ProgramMemory::kShared) == shared) bytes += mapping.length;
    }
    return bytes;
  }
};

struct ExecOptions {
  // Bytes of stack, rounded up to pages; 0: what the program asks for (PT_GNU_STACK, bFLT's header), else 128 KiB.
  std::uint64_t stack_size = 0;
  // As ConnectOptions::runtime_dir.
  std::string runtime_dir;
};

// How a program file would be loaded; needs no daemon, and the program may be for another machine. ENOEXEC with the
// reason if it cannot be; EACCES if it is no regular file that the caller may execute and read; ENOENT and what else
// open(2) says. Only `options.stack_size` matters.
MAPBROKER_EXPORT absl::StatusOr<LoadMap> PlanExec(const std::string& path, const ExecOptions& options = {});

// execve(2) out of the pool: replaces this process's program by the one at `path` (an ELF program for this machine,
// linked -static-pie), whose text, data, bss and stack are mappings of a session of this pid. Whatever else this
// process had mapped goes (X4), open descriptors and the signal mask stay as with execve(2). Returns only on failure;
// nothing has changed then. ENOEXEC, EACCES, E2BIG (the arguments need more than half of the stack), the errors of
// Client::Connect and Client::Map, ENOTSUP on a pool of huge pages.
//
// Not for a forked or vforked child of a process that uses the library: start `mapctl exec` there with posix_spawn.
MAPBROKER_EXPORT absl::Status Exec(const std::string& path, char* const argv[], char* const envp[],
                                   const ExecOptions& options = {});

}  // namespace mapbroker
