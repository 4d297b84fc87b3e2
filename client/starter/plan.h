// What the library tells the starter (starter.cc), which shares no memory with it: the library writes the plan into
// the starter's image before it executes that.
#pragma once

#include <cstdint>

namespace mapbroker::starter {

// Marks the plan in the image.
inline constexpr char kMagic[16] = {'m', 'a', 'p', 'b', 'r', 'o', 'k', 'e', 'r', ' ', 'p', 'l', 'a', 'n', '\n', '\0'};

// Up to two pieces for each of a program's segments (loader::kMaxSegments), and the stack.
inline constexpr std::uint32_t kMaxPieces = 65;
// Sessions that one process has at most when it calls exec.
inline constexpr std::uint32_t kMaxSessions = 64;
// A path with its final zero, as PATH_MAX.
inline constexpr std::uint32_t kMaxPath = 4096;
// A process's name with its final zero, as TASK_COMM_LEN.
inline constexpr std::uint32_t kMaxName = 16;

// Pool memory to attach; all in bytes, whole pages.
struct Piece {
  std::uint64_t address;       // where in this process
  std::uint64_t length;        //
  std::uint64_t pool_address;  //
  std::int32_t prot;           // PROT_*
  std::int32_t own;            // 1: this process's own memory; 0: others have it too
};

struct Plan {
  char magic[sizeof(kMagic)];
  std::uint64_t entry;            // address of the first instruction
  std::uint64_t program_headers;  // address, 0 if they are not in memory
  std::uint64_t program_header_count;
  std::uint64_t stack_end;  // address behind the stack
  std::int32_t pool;        // the pool's descriptor; closed when all is attached
  std::uint32_t piece_count;
  std::uint32_t session_count;
  std::int32_t sessions[kMaxSessions];  // handoff sockets of the sessions that the old program had
  Piece pieces[kMaxPieces];
  char name[kMaxName];
  char path[kMaxPath];
};

}  // namespace mapbroker::starter
