// The program that execve really runs when a program is to run out of the pool: attaches the pieces that the plan
// names, moves what the kernel put on the stack to the program's own, and jumps to the program. It stands alone,
// without a C library, so that of the process that called exec nothing is left, and nothing of its own is in the way.
//
// x86-64. Linked for a fixed low address, far from where pieces go. What fails here fails after the point of no return
// and so ends as the kernel's own loader does then: by SIGKILL, with a line on standard error.
#include <elf.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include <cstddef>
#include <cstdint>

#include "client/starter/plan.h"

namespace {

using mapbroker::starter::kMagic;
using mapbroker::starter::Piece;
using mapbroker::starter::Plan;

constexpr int kStandardError = 2;
constexpr int kKill = 9;  // <signal.h> wants a C library

// Filled in by the library. Volatile: what the compiler sees here is not what will be here.
[[gnu::used, gnu::section(".plan")]] const volatile Plan plan = {
    .magic = {'m', 'a', 'p', 'b', 'r', 'o', 'k', 'e', 'r', ' ', 'p', 'l', 'a', 'n', '\n', '\0'},
    .entry = 0,
    .program_headers = 0,
    .program_header_count = 0,
    .stack_end = 0,
    .pool = -1,
    .piece_count = 0,
    .session_count = 0,
    .sessions = {},
    .pieces = {},
    .name = {},
    .path = {}};

// The system call; its value, or the negative errno.
long Call(long number, long a = 0, long b = 0, long c = 0, long d = 0, long e = 0, long f = 0) {
  register long r10 asm("r10") = d;
  register long r8 asm("r8") = e;
  register long r9 asm("r9") = f;
  long result;
  asm volatile("syscall"
               : "=a"(result)
               : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
               : "rcx", "r11", "memory");
  return result;
}

template <typename T>
long AsLong(T* pointer) {
  return reinterpret_cast<long>(pointer);
}

std::size_t Length(const volatile char* text) {
  std::size_t length = 0;
  while (text[length] != '\0') ++length;
  return length;
}

[[noreturn]] void Fail(const char* sentence) {
  Call(SYS_write, kStandardError, AsLong(sentence), static_cast<long>(Length(sentence)));
  for (;;) Call(SYS_kill, Call(SYS_getpid), kKill);
}

void Attach() {
  for (std::uint32_t i = 0; i < plan.piece_count; ++i) {
    const volatile Piece& piece = plan.pieces[i];
    const long address = static_cast<long>(piece.address), length = static_cast<long>(piece.length);
    // What others have too is attached privately: should this process be made to write there (a debugger's breakpoint,
    // relocations in the text), it gets pages of its own and nobody else sees it.
    const int type = piece.own != 0 ? MAP_SHARED : MAP_PRIVATE;
    if (Call(SYS_mmap, address, length, piece.prot, type | MAP_FIXED_NOREPLACE, plan.pool,
             static_cast<long>(piece.pool_address)) != address) {
      Fail("mapbroker: cannot attach the program's memory where it belongs\n");
    }
    // X1: a forked child has none of its parent's memory, instead of writing to it.
    if (piece.own != 0) Call(SYS_madvise, address, length, MADV_DONTFORK);
  }
  Call(SYS_close, plan.pool);
}

// The address space of the program that called exec is gone, so its sessions end (X4). A HandoffRequest that holds
// Goodbye, as protobuf writes it: field 4, no bytes.
void EndOldSessions() {
  static const char kGoodbye[] = {0x22, 0x00};
  for (std::uint32_t i = 0; i < plan.session_count; ++i) {
    const long socket = plan.sessions[i];
    Call(SYS_sendto, socket, AsLong(kGoodbye), sizeof(kGoodbye), MSG_DONTWAIT | MSG_NOSIGNAL);
    Call(SYS_close, socket);
  }
}

// A stack that grows downwards. There is room: the library has looked.
class Stack {
 public:
  explicit Stack(std::uint64_t end) : at_(end) {}

  std::uint64_t Bytes(const volatile char* from, std::size_t count) {
    at_ -= count;
    auto* const to = reinterpret_cast<volatile char*>(at_);
    for (std::size_t i = 0; i < count; ++i) to[i] = from[i];
    return at_;
  }
  std::uint64_t String(const volatile char* text) { return Bytes(text, Length(text) + 1); }
  std::uint64_t CopyOf(std::uint64_t text) { return String(reinterpret_cast<const char*>(text)); }

  // Room for words, so that the first is aligned as the ABI wants the stack pointer to be.
  std::uint64_t* Words(std::size_t count) {
    constexpr std::uint64_t kAlignment = 16;
    at_ = (at_ - count * sizeof(std::uint64_t)) / kAlignment * kAlignment;
    return reinterpret_cast<std::uint64_t*>(at_);
  }

 private:
  std::uint64_t at_;
};

// One entry of the auxiliary vector, for the program instead of for the starter.
std::uint64_t AuxiliaryValue(std::uint64_t type, std::uint64_t value, Stack& stack) {
  constexpr std::size_t kRandomBytes = 16;
  switch (type) {
    case AT_PHDR:
      return plan.program_headers;
    case AT_PHNUM:
      return plan.program_header_count;
    case AT_PHENT:
      return sizeof(Elf64_Phdr);
    case AT_ENTRY:
      return plan.entry;
    case AT_BASE:
      return 0;
    case AT_EXECFN:
      return stack.String(plan.path);
    case AT_PLATFORM:
    case AT_BASE_PLATFORM:
      return stack.CopyOf(value);
    case AT_RANDOM:
      return stack.Bytes(reinterpret_cast<const char*>(value), kRandomBytes);
    default:
      return value;
  }
}

// `words` is the stack as the kernel made it: argc, argv, 0, envp, 0, auxiliary vector. Where the same begins on the
// program's stack.
std::uint64_t* MoveStack(const std::uint64_t* words) {
  std::size_t strings_end = 1;  // in words: the end of envp, its 0 included
  for (int zeros = 0; zeros < 2; ++strings_end) {
    if (words[strings_end] == 0) ++zeros;
  }
  std::size_t count = strings_end;
  while (words[count] != AT_NULL) count += 2;
  count += 2;

  Stack stack(plan.stack_end);
  // The strings go above the words that point to them, so they are copied first, and the words collected meanwhile
  // where they were.
  auto* const moved = const_cast<std::uint64_t*>(words);
  for (std::size_t i = 1; i < strings_end; ++i) {
    if (words[i] != 0) moved[i] = stack.CopyOf(words[i]);
  }
  for (std::size_t i = strings_end; i < count; i += 2) moved[i + 1] = AuxiliaryValue(words[i], words[i + 1], stack);
  std::uint64_t* const top = stack.Words(count);
  for (std::size_t i = 0; i < count; ++i) static_cast<volatile std::uint64_t*>(top)[i] = moved[i];
  return top;
}

}  // namespace

// Called by _start with the kernel's stack pointer. Leaves the entry point below the stack pointer that it returns.
extern "C" [[gnu::used]] std::uint64_t* StartProgram(std::uint64_t* words) {
  Attach();
  EndOldSessions();
  Call(SYS_prctl, PR_SET_NAME, AsLong(plan.name));
  std::uint64_t* const top = MoveStack(words);
  *static_cast<volatile std::uint64_t*>(top - 1) = plan.entry;
  return top;
}

// All registers are zero when the program begins, as the kernel leaves them; rdx must be (the ABI: no function to
// register with atexit).
asm(R"(
  .globl _start
  .type _start, @function
_start:
  endbr64
  mov %rsp, %rdi
  and $-16, %rsp
  call StartProgram
  mov %rax, %rsp
  xor %eax, %eax
  xor %ebx, %ebx
  xor %ecx, %ecx
  xor %edx, %edx
  xor %esi, %esi
  xor %edi, %edi
  xor %ebp, %ebp
  xor %r8d, %r8d
  xor %r9d, %r9d
  xor %r10d, %r10d
  xor %r11d, %r11d
  xor %r12d, %r12d
  xor %r13d, %r13d
  xor %r14d, %r14d
  xor %r15d, %r15d
  jmp *-8(%rsp)
)");
