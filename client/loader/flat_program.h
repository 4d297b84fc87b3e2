// bFLT programs (uClinux's flat format, versions 2 and 4) as the kernel's binfmt_flat loads them without an MMU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/loader/program_file.h"
#include "mapbroker/exec.h"

namespace mapbroker::loader {

// Order of bytes of the machine that the program is for; the format does not say.
enum class ByteOrder { kLittle, kBig };

// Sizes and offsets in bytes.
struct FlatProgram {
  std::uint32_t version = 0;  // 2 or 4
  std::uint32_t flags = 0;    // FLAT_FLAG_*, after what version 2 makes of them
  std::uint64_t entry = 0;    // from the start of the text, which begins with the file's header
  std::uint64_t bss_length = 0, stack_length = 0;
  // Why each process needs its own text; empty if all can share it.
  std::string text_is_copied_since;
  // What the file holds, inflated: text with the header before it, and data. Relocate() changes it.
  std::vector<std::byte> text, data;
  std::vector<std::uint32_t> relocations;  // as they stand in the file
  LoadMap map;
};

// Pure but for reading the file; failures as ParseElf's. A program is refused if its relocations fit neither order of
// bytes. `stack_size` in bytes, 0: what the header says.
absl::StatusOr<FlatProgram> ParseFlat(const ProgramFile& file, std::uint64_t stack_size);

// Whether the bytes begin as a bFLT file does.
bool IsFlat(const ProgramFile& file);

// Makes the pointers in text and data those of a program whose text (with the header) begins at `text_address` and
// whose data begins at `data_address`: the GOT, then what the relocations name. Fails, with the reason, where one lies
// outside the program or points there; text and data are in an undefined state then.
absl::Status Relocate(FlatProgram& program, ByteOrder order, std::uint32_t text_address, std::uint32_t data_address);

}  // namespace mapbroker::loader
