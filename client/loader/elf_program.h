// ELF programs as the kernel loads them without an MMU: which parts of the file become which mappings (X4).
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "client/loader/program_file.h"
#include "mapbroker/exec.h"

namespace mapbroker::loader {

// Addresses are in bytes from the start of the image.
struct ElfProgram {
  std::uint16_t machine = 0;  // EM_*
  bool is_64_bit = false;
  bool big_endian = false;
  std::uint64_t entry = 0;
  // The program headers in memory, as AT_PHDR tells them; 0 if no segment holds them.
  std::uint64_t program_headers = 0;
  std::uint16_t program_header_count = 0;
  std::uint64_t image_size = 0;  // bytes from address 0 to the end of the last segment, whole pages
  LoadMap map;                   // its last mapping and piece are the stack
};

// Bytes. The image must fit between where it is loaded and where clients attach the whole pool.
inline constexpr std::uint64_t kMaxImage = std::uint64_t{1} << 39;

// Segments that a program may have: each is at most two pieces (file's bytes, zeros). Usual programs have four or five.
inline constexpr std::size_t kMaxSegments = 32;

// Pure but for reading the file. The status's message is the reason, one sentence that begins with what the file is or
// lacks; every failure is ENOEXEC to the caller. `stack_size` in bytes, 0: what the program asks for.
absl::StatusOr<ElfProgram> ParseElf(const ProgramFile& file, std::uint64_t stack_size);

}  // namespace mapbroker::loader
