// Exec: maps a program's segments under the rules and replaces this process's program by it (X4).
#include "mapbroker/exec.h"

#include <elf.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/loader/elf_program.h"
#include "client/loader/flat_program.h"
#include "client/src/session.h"
#include "client/src/starter_image.h"
#include "client/src/status.h"

namespace mapbroker {
namespace {

// Where the image of a program begins in its process. Virtual addresses are this machine's matter and not the rules':
// so far below shared libraries, stacks and what else the kernel places, and below where clients attach the whole pool,
// that the largest image fits.
constexpr std::uint64_t kImageBase = 0x5400'0000'0000;
// Nothing lies between stack and image, so that what runs over the end of either is a fault.
constexpr std::uint64_t kStackEnd = kImageBase - 65536;

static_assert(2 * loader::kMaxSegments + 1 <= starter::kMaxPieces);
static_assert(PATH_MAX <= starter::kMaxPath);

absl::Status Refused(int error, const std::string& path, const absl::string_view reason, const std::string& rule = "") {
  return MakeStatus(error, absl::StrCat(path, ": ", reason), rule);
}

absl::Status NotLoadable(const std::string& path, const absl::Status& reason) {
  return Refused(ENOEXEC, path, absl::StrCat("cannot be loaded: ", std::string(reason.message())), "X4");
}

struct OpenProgram {
  shm::UniqueFd fd;
  loader::ProgramFile file;
};

// As execve(2) looks at a file, and it must be readable as well, since the daemon reads it on the caller's behalf.
absl::StatusOr<OpenProgram> OpenFile(const std::string& path) {
  if (path.size() >= PATH_MAX) return Refused(ENAMETOOLONG, path.substr(0, 64), "the path is too long");
  // Not blocking: a FIFO without a writer would wait for one.
  OpenProgram program{.fd = shm::UniqueFd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)), .file = {}};
  struct stat stat;
  if (!program.fd || fstat(program.fd.get(), &stat) != 0) {
    const int error = errno;
    return Refused(error, path, std::strerror(error));
  }
  if (!S_ISREG(stat.st_mode)) return Refused(EACCES, path, "only a regular file can be a program");
  if (faccessat(program.fd.get(), "", X_OK, AT_EACCESS | AT_EMPTY_PATH) != 0) {
    const int error = errno;
    return Refused(error, path,
                   error == EACCES ? "this user may not execute it: chmod +x, on a file system not mounted noexec"
                                   : std::strerror(error));
  }
  const int fd = program.fd.get();
  program.file.size = static_cast<std::uint64_t>(stat.st_size);
  program.file.read = [fd](std::uint64_t offset, std::span<std::byte> into) {
    for (std::size_t done = 0; done < into.size();) {
      const ssize_t read = pread(fd, into.data() + done, into.size() - done, static_cast<off_t>(offset + done));
      if (read < 0 && errno == EINTR) continue;
      if (read <= 0) return false;
      done += static_cast<std::size_t>(read);
    }
    return true;
  };
  return program;
}

std::size_t CountOf(char* const strings[]) {
  std::size_t count = 0;
  while (strings != nullptr && strings[count] != nullptr) ++count;
  return count;
}

// Bytes of stack that the starter fills, or somewhat more.
std::uint64_t ArgumentBytes(const std::string& path, char* const argv[], char* const envp[]) {
  // The auxiliary vector, its strings, and what alignment takes: some twenty entries of 16 bytes in today's kernels.
  constexpr std::uint64_t kAuxiliary = 1536;
  std::uint64_t bytes = kAuxiliary + path.size() + 1;
  for (char* const* strings : {argv, envp}) {
    const std::size_t count = CountOf(strings);
    bytes += (count + 2) * sizeof(char*);
    for (std::size_t i = 0; i < count; ++i) bytes += std::strlen(strings[i]) + 1;
  }
  return bytes;
}

absl::Status CheckRunsHere(const std::string& path, const loader::ElfProgram& program) {
  if (program.machine == EM_X86_64 && program.is_64_bit && !program.big_endian) return absl::OkStatus();
  return Refused(
      ENOEXEC, path,
      absl::StrCat("is for another machine (", program.map.machine, ", ", program.is_64_bit ? 64 : 32, " bits, ",
                   program.big_endian ? "big" : "little", "-endian): only --dry-run says something of it here"));
}

// One call to mmap for each mapping of the program, in order. What a copy has beyond the file's bytes becomes zero.
absl::StatusOr<std::vector<Mapped>> MapAll(Session& session, int fd, const LoadMap& map) {
  std::vector<Mapped> all;
  for (const ProgramMapping& wanted : map.mappings) {
    const bool anonymous = wanted.memory == ProgramMemory::kZeroed;
    MapOptions options{.length = wanted.length,
                       .prot = wanted.prot,
                       .flags = MAP_PRIVATE | (anonymous ? MAP_ANONYMOUS : 0),
                       .fd = fd,
                       .offset = wanted.offset};
    // A copy of one's own is what a writable mapping gets (S7).
    if (wanted.memory == ProgramMemory::kCopied) options.prot |= PROT_READ | PROT_WRITE;
    absl::StatusOr<Mapped> mapped = session.Map(options);
    if (!mapped.ok()) return mapped.status();
    if (wanted.memory == ProgramMemory::kCopied) {
      std::byte* const bytes = mapped->attachment->At(mapped->grant.address());
      std::fill(bytes + wanted.file_length, bytes + wanted.length, std::byte{0});
    }
    all.push_back(*std::move(mapped));
  }
  return all;
}

// The last of the path's names, cut to what a process's name may have.
std::string NameOf(const std::string& path) {
  return path.substr(path.rfind('/') + 1).substr(0, starter::kMaxName - 1);
}

std::unique_ptr<starter::Plan> MakePlan(const std::string& path, const loader::ElfProgram& program,
                                        const std::vector<Mapped>& mapped) {
  auto plan = std::make_unique<starter::Plan>();
  plan->entry = kImageBase + program.entry;
  plan->program_headers = program.program_headers == 0 ? 0 : kImageBase + program.program_headers;
  plan->program_header_count = program.program_header_count;
  plan->stack_end = kStackEnd;
  for (const ProgramPiece& piece : program.map.pieces) {
    const bool is_stack = &piece == &program.map.pieces.back();
    plan->pieces[plan->piece_count++] = {
        .address = is_stack ? kStackEnd - piece.length : kImageBase + piece.address,
        .length = piece.length,
        .pool_address = mapped[piece.mapping].grant.address() + piece.start,
        .prot = piece.prot,
        .own = program.map.mappings[piece.mapping].memory == ProgramMemory::kShared ? 0 : 1};
  }
  NameOf(path).copy(plan->name, sizeof(plan->name) - 1);
  path.copy(plan->path, sizeof(plan->path) - 1);
  return plan;
}

// Duplicates that execve does not close. Owned, since they must go if execve fails.
absl::StatusOr<shm::UniqueFd> Inheritable(int fd) {
  shm::UniqueFd duplicate(fcntl(fd, F_DUPFD, STDERR_FILENO + 1));
  if (!duplicate) return MakeStatus(errno, absl::StrCat("cannot duplicate a descriptor: ", std::strerror(errno)));
  return duplicate;
}

}  // namespace

absl::StatusOr<LoadMap> PlanExec(const std::string& path, const ExecOptions& options) {
  const absl::StatusOr<OpenProgram> opened = OpenFile(path);
  if (!opened.ok()) return opened.status();
  if (loader::IsFlat(opened->file)) {
    absl::StatusOr<loader::FlatProgram> program = loader::ParseFlat(opened->file, options.stack_size);
    if (!program.ok()) return NotLoadable(path, program.status());
    return std::move(program->map);
  }
  absl::StatusOr<loader::ElfProgram> program = loader::ParseElf(opened->file, options.stack_size);
  if (!program.ok()) return NotLoadable(path, program.status());
  return std::move(program->map);
}

absl::Status Exec(const std::string& path, char* const argv[], char* const envp[], const ExecOptions& options) {
  const absl::StatusOr<OpenProgram> opened = OpenFile(path);
  if (!opened.ok()) return opened.status();
  if (loader::IsFlat(opened->file)) {
    return Refused(ENOEXEC, path, "is a bFLT program, for which there is only --dry-run");
  }
  const absl::StatusOr<loader::ElfProgram> program = loader::ParseElf(opened->file, options.stack_size);
  if (!program.ok()) return NotLoadable(path, program.status());
  if (absl::Status status = CheckRunsHere(path, *program); !status.ok()) return status;
  const std::uint64_t arguments = ArgumentBytes(path, argv, envp), stack = program->map.mappings.back().length;
  if (arguments > stack / 2) {
    return Refused(E2BIG, path,
                   absl::StrCat("arguments and environment take ", arguments, " bytes, more than half of a stack of ",
                                stack, ": pass less, or ask for a larger stack"));
  }

  // Those of the old program, which end when it has gone; the new one gets a session of its own.
  const std::vector<int> old_sessions = Handoff::OpenSockets();
  if (old_sessions.size() > starter::kMaxSessions) {
    return Refused(EMFILE, path, absl::StrCat("this process has more than ", starter::kMaxSessions, " sessions"));
  }
  absl::StatusOr<std::shared_ptr<Session>> session = Session::Open({.runtime_dir = options.runtime_dir});
  if (!session.ok()) return session.status();
  const v1::Welcome& welcome = (*session)->welcome();
  if (welcome.page_size() != loader::kPageSize || welcome.attach_granularity() != loader::kPageSize) {
    return Refused(ENOTSUP, path, "segments cannot be attached out of a pool of huge pages: use one of ordinary pages");
  }
  const absl::StatusOr<std::vector<Mapped>> mapped = MapAll(**session, opened->fd.get(), program->map);
  if (!mapped.ok()) return mapped.status();

  const std::unique_ptr<starter::Plan> plan = MakePlan(path, *program, *mapped);
  const absl::StatusOr<shm::UniqueFd> pool = Inheritable((*session)->pool());
  if (!pool.ok()) return pool.status();
  plan->pool = pool->get();
  std::vector<shm::UniqueFd> inherited;
  for (const int socket : old_sessions) {
    absl::StatusOr<shm::UniqueFd> duplicate = Inheritable(socket);
    if (!duplicate.ok()) return duplicate.status();
    plan->sessions[plan->session_count++] = duplicate->get();
    inherited.push_back(*std::move(duplicate));
  }
  // On success nothing here is destroyed: the mappings stay this pid's until it ends, which its pidfd tells the daemon.
  return ExecuteStarter(*plan, argv, envp);
}

}  // namespace mapbroker
