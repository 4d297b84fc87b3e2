// Program files as hostile input: both parsers, and the relocations of what the second lets through.
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "client/loader/elf_program.h"
#include "client/loader/flat_program.h"

using namespace mapbroker::loader;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const ProgramFile file{.size = size, .read = [=](std::uint64_t offset, std::span<std::byte> into) {
                           // Nobody asks for what is not there.
                           if (offset > size || into.size() > size - offset) std::abort();
                           if (!into.empty()) std::memcpy(into.data(), data + offset, into.size());
                           return true;
                         }};
  if (!IsFlat(file)) {
    const auto program = ParseElf(file, 0);
    if (!program.ok()) return 0;
    for (const auto& piece : program->map.pieces) {
      if (piece.start + piece.length > program->map.mappings.at(piece.mapping).length) std::abort();
    }
    return 0;
  }
  auto program = ParseFlat(file, 0);
  if (!program.ok()) return 0;
  for (const auto& piece : program->map.pieces) {
    if (piece.start + piece.length > program->map.mappings.at(piece.mapping).length) std::abort();
  }
  Relocate(*program, ByteOrder::kLittle, 0x1000'0000, 0x2000'0000).IgnoreError();
  return 0;
}
