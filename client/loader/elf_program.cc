#include "client/loader/elf_program.h"

#include <elf.h>
#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace mapbroker::loader {
namespace {

// As in the kernel: a table of program headers is at most so long, in bytes.
constexpr std::uint64_t kMaxHeaderTable = 65536;

absl::Status Reason(const std::string& sentence) { return absl::InvalidArgumentError(sentence); }

// Fields of headers, which differ in width and order of bytes from machine to machine.
class Fields {
 public:
  Fields(std::span<const std::byte> bytes, bool is_64_bit, bool big_endian)
      : bytes_(bytes), is_64_bit_(is_64_bit), big_endian_(big_endian) {}

  // REQUIRES: the field lies in the bytes.
  std::uint16_t Half(std::size_t at) const { return static_cast<std::uint16_t>(Number(at, 2)); }
  std::uint32_t Word(std::size_t at) const { return static_cast<std::uint32_t>(Number(at, 4)); }
  // Addresses, offsets and sizes; they lie elsewhere in each class.
  std::uint64_t Wide(std::size_t at_32, std::size_t at_64) const {
    return is_64_bit_ ? Number(at_64, 8) : Number(at_32, 4);
  }

 private:
  std::uint64_t Number(std::size_t at, std::size_t size) const {
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < size; ++i) {
      const std::size_t next = big_endian_ ? at + i : at + size - 1 - i;
      value = value << 8 | std::to_integer<std::uint64_t>(bytes_[next]);
    }
    return value;
  }

  std::span<const std::byte> bytes_;
  bool is_64_bit_, big_endian_;
};

struct Header {
  std::uint32_t type = 0, flags = 0;
  std::uint64_t offset = 0, address = 0, file_size = 0, memory_size = 0, alignment = 0;
};

std::string MachineName(std::uint16_t machine) {
  static const std::map<std::uint16_t, const char*> kNames{{EM_386, "i386"},
                                                           {EM_68K, "m68k"},
                                                           {EM_MIPS, "MIPS"},
                                                           {EM_PPC, "PowerPC"},
                                                           {EM_ARM, "ARM"},
                                                           {EM_SH, "SuperH"},
                                                           {EM_SPARC, "SPARC"},
                                                           {EM_X86_64, "x86-64"},
                                                           {EM_XTENSA, "Xtensa"},
                                                           {EM_AARCH64, "AArch64"},
                                                           {EM_MICROBLAZE, "MicroBlaze"},
                                                           {EM_RISCV, "RISC-V"},
                                                           {EM_BLACKFIN, "Blackfin"}};
  const auto found = kNames.find(machine);
  return found == kNames.end() ? absl::StrCat("machine ", machine) : found->second;
}

int ProtOf(std::uint32_t flags) {
  return ((flags & PF_R) != 0 ? PROT_READ : 0) | ((flags & PF_W) != 0 ? PROT_WRITE : 0) |
         ((flags & PF_X) != 0 ? PROT_EXEC : 0);
}

std::string Name(const Header& segment) {
  if ((segment.flags & PF_W) != 0) return "data";
  return (segment.flags & PF_X) != 0 ? "text" : "rodata";
}

// The file's header and its program headers.
class Parser {
 public:
  explicit Parser(const ProgramFile& file) : file_(file) {}

  absl::StatusOr<ElfProgram> Parse(std::uint64_t stack_size) {
    absl::Status status = ReadIdentification();
    if (status.ok()) status = ReadFileHeader();
    if (status.ok()) status = ReadProgramHeaders();
    if (status.ok()) status = CheckSegments();
    if (status.ok()) status = CheckEntry();
    if (!status.ok()) return status;
    MapFileParts();
    MapZeros();
    MapStack(stack_size);
    FindProgramHeaders();
    return std::move(program_);
  }

 private:
  absl::Status ReadIdentification() {
    std::byte head[EI_NIDENT];
    if (file_.size < sizeof(head)) {
      return Reason(absl::StrCat("the file has ", file_.size, " bytes, which is too short for any program"));
    }
    if (!file_.read(0, head)) return Reason("its header cannot be read");
    const auto at = [&](std::size_t index) { return std::to_integer<unsigned char>(head[index]); };
    if (at(0) == '#' && at(1) == '!') return Reason("it is a script: run its interpreter and name the script to it");
    if (at(EI_MAG0) != ELFMAG0 || at(EI_MAG1) != ELFMAG1 || at(EI_MAG2) != ELFMAG2 || at(EI_MAG3) != ELFMAG3) {
      return Reason("it is neither ELF nor bFLT: its first bytes are those of no program");
    }
    if (at(EI_CLASS) != ELFCLASS32 && at(EI_CLASS) != ELFCLASS64) {
      return Reason(absl::StrCat("its ELF class ", at(EI_CLASS), " is neither 1 (32 bits) nor 2 (64 bits)"));
    }
    if (at(EI_DATA) != ELFDATA2LSB && at(EI_DATA) != ELFDATA2MSB) {
      return Reason(absl::StrCat("its order of bytes ", at(EI_DATA), " is neither 1 (little) nor 2 (big)"));
    }
    if (at(EI_VERSION) != EV_CURRENT) return Reason(absl::StrCat("its ELF version ", at(EI_VERSION), " is not 1"));
    program_.is_64_bit = at(EI_CLASS) == ELFCLASS64;
    program_.big_endian = at(EI_DATA) == ELFDATA2MSB;
    return absl::OkStatus();
  }

  absl::Status ReadFileHeader() {
    std::vector<std::byte> bytes(program_.is_64_bit ? sizeof(Elf64_Ehdr) : sizeof(Elf32_Ehdr));
    if (file_.size < bytes.size() || !file_.read(0, bytes)) {
      return Reason(absl::StrCat("its ELF header is truncated: ", file_.size, " of ", bytes.size(), " bytes"));
    }
    const Fields fields(bytes, program_.is_64_bit, program_.big_endian);
    const std::uint16_t type = fields.Half(offsetof(Elf64_Ehdr, e_type));
    if (type == ET_EXEC) {
      return Reason(
          "it is linked for a fixed address, and without an MMU addresses cannot be chosen (rule M3): "
          "build it with -static-pie");
    }
    if (type != ET_DYN) return Reason(absl::StrCat("its ELF type ", type, " is no program: link it, with -static-pie"));
    program_.machine = fields.Half(offsetof(Elf64_Ehdr, e_machine));
    program_.entry = fields.Wide(offsetof(Elf32_Ehdr, e_entry), offsetof(Elf64_Ehdr, e_entry));
    table_ = fields.Wide(offsetof(Elf32_Ehdr, e_phoff), offsetof(Elf64_Ehdr, e_phoff));
    const std::size_t at = program_.is_64_bit ? offsetof(Elf64_Ehdr, e_phentsize) : offsetof(Elf32_Ehdr, e_phentsize);
    const std::uint64_t size = fields.Half(at), expected = program_.is_64_bit ? sizeof(Elf64_Phdr) : sizeof(Elf32_Phdr);
    program_.program_header_count = fields.Half(at + 2);
    if (program_.program_header_count == 0) return Reason("it has no program headers, so nothing to load");
    if (size != expected) return Reason(absl::StrCat("its program headers have ", size, " bytes, not ", expected));
    table_size_ = size * program_.program_header_count;
    if (table_size_ > kMaxHeaderTable) {
      return Reason(absl::StrCat("its program headers take ", table_size_, " bytes, more than ", kMaxHeaderTable));
    }
    if (table_ > file_.size || table_size_ > file_.size - table_) {
      return Reason("its program headers are truncated: they lie past the end of the file");
    }
    program_.map.format = "ELF";
    program_.map.machine = MachineName(program_.machine);
    return absl::OkStatus();
  }

  absl::Status ReadProgramHeaders() {
    std::vector<std::byte> bytes(table_size_);
    if (!file_.read(table_, bytes)) return Reason("its program headers cannot be read");
    const std::size_t size = table_size_ / program_.program_header_count;
    for (std::size_t at = 0; at < table_size_; at += size) {
      const Fields fields(std::span<const std::byte>(bytes).subspan(at, size), program_.is_64_bit, program_.big_endian);
      const Header header{
          .type = fields.Word(0),
          .flags = fields.Word(program_.is_64_bit ? offsetof(Elf64_Phdr, p_flags) : offsetof(Elf32_Phdr, p_flags)),
          .offset = fields.Wide(offsetof(Elf32_Phdr, p_offset), offsetof(Elf64_Phdr, p_offset)),
          .address = fields.Wide(offsetof(Elf32_Phdr, p_vaddr), offsetof(Elf64_Phdr, p_vaddr)),
          .file_size = fields.Wide(offsetof(Elf32_Phdr, p_filesz), offsetof(Elf64_Phdr, p_filesz)),
          .memory_size = fields.Wide(offsetof(Elf32_Phdr, p_memsz), offsetof(Elf64_Phdr, p_memsz)),
          .alignment = fields.Wide(offsetof(Elf32_Phdr, p_align), offsetof(Elf64_Phdr, p_align))};
      if (header.type == PT_INTERP) {
        return Reason("it is linked dynamically and needs another program to load it: build it with -static-pie");
      }
      if (header.type == PT_GNU_STACK) stack_ = header;
      if (header.type != PT_LOAD) continue;
      // It would occupy nothing.
      if (header.memory_size == 0 && header.file_size == 0) continue;
      segments_.push_back(header);
      if (segments_.size() > kMaxSegments) {
        return Reason(absl::StrCat("it has more than ", kMaxSegments, " segments to load"));
      }
    }
    if (segments_.empty()) return Reason("it has no segment to load");
    return absl::OkStatus();
  }

  // Each segment by itself, and that they come in order without sharing a page.
  absl::Status CheckSegments() {
    std::uint64_t end = 0;
    for (std::size_t i = 0; i < segments_.size(); ++i) {
      const Header& segment = segments_[i];
      const std::string which = absl::StrCat("its segment ", i);
      if (segment.file_size > segment.memory_size) {
        return Reason(absl::StrCat(which, " has more bytes in the file (", segment.file_size, ") than in memory (",
                                   segment.memory_size, ")"));
      }
      if (segment.offset > file_.size || segment.file_size > file_.size - segment.offset) {
        return Reason(absl::StrCat(which, " reaches past the end of the file: the file is truncated"));
      }
      if (segment.address > kMaxImage || segment.memory_size > kMaxImage - segment.address) {
        return Reason(absl::StrCat(which, " ends past the largest possible image of ", kMaxImage, " bytes"));
      }
      if (segment.alignment > 1 && !std::has_single_bit(segment.alignment)) {
        return Reason(absl::StrCat(which, " has an alignment, ", segment.alignment, ", that is no power of two"));
      }
      if (segment.address % kPageSize != segment.offset % kPageSize) {
        return Reason(absl::StrCat(which, " lies elsewhere within its page in the file than in memory"));
      }
      if (i > 0 && PageDown(segment.address) < end) {
        return Reason(absl::StrCat(which, " overlaps the one before it or comes out of order"));
      }
      end = PageUp(segment.address + segment.memory_size);
    }
    program_.image_size = end;
    return absl::OkStatus();
  }

  absl::Status CheckEntry() const {
    for (const Header& segment : segments_) {
      if ((segment.flags & PF_X) != 0 && program_.entry >= segment.address &&
          program_.entry - segment.address < segment.file_size) {
        return absl::OkStatus();
      }
    }
    return Reason("its entry point lies in no executable segment: it may be a library and no program");
  }

  // One mapping for each segment's bytes of the file. Segments that are shared and lie on the same pages of the file
  // get one mapping that covers them all, since overlapping copies are refused (S4).
  void MapFileParts() {
    std::vector<std::size_t> by_offset;
    for (std::size_t i = 0; i < segments_.size(); ++i) {
      if (segments_[i].file_size > 0) by_offset.push_back(i);
    }
    std::stable_sort(by_offset.begin(), by_offset.end(),
                     [&](std::size_t a, std::size_t b) { return segments_[a].offset < segments_[b].offset; });
    std::vector<ProgramMapping>& mappings = program_.map.mappings;
    std::map<std::size_t, std::size_t> mapping_of;  // by segment
    std::optional<std::size_t> last_shared;
    for (const std::size_t i : by_offset) {
      const Header& segment = segments_[i];
      // Zeros behind the file's bytes would be written into what others see.
      const bool copied = (segment.flags & PF_W) != 0 || segment.memory_size > segment.file_size;
      const std::uint64_t begin = PageDown(segment.offset), file_end = segment.offset + segment.file_size;
      const std::uint64_t end = PageUp(file_end);
      if (!copied && last_shared && begin < mappings[*last_shared].offset + mappings[*last_shared].length) {
        ProgramMapping& joint = mappings[*last_shared];
        joint.prot |= ProtOf(segment.flags);
        joint.length = std::max(joint.length, end - joint.offset);
      } else {
        if (!copied) last_shared = mappings.size();
        mappings.push_back({.memory = copied ? ProgramMemory::kCopied : ProgramMemory::kShared,
                            .prot = ProtOf(segment.flags),
                            .offset = begin,
                            .length = end - begin});
      }
      mapping_of[i] = copied ? mappings.size() - 1 : *last_shared;
      ProgramMapping& mapping = mappings[mapping_of[i]];
      mapping.file_length = copied ? file_end - begin : std::min(mapping.length, file_.size - mapping.offset);
    }
    for (const auto& [i, mapping] : mapping_of) {
      const std::uint64_t begin = PageDown(segments_[i].offset);
      program_.map.pieces.push_back({.name = Name(segments_[i]),
                                     .address = PageDown(segments_[i].address),
                                     .length = PageUp(segments_[i].offset + segments_[i].file_size) - begin,
                                     .prot = ProtOf(segments_[i].flags),
                                     .mapping = mapping,
                                     .start = begin - mappings[mapping].offset});
      if ((segments_[i].flags & PF_W) != 0 && (segments_[i].flags & PF_X) != 0) {
        program_.map.notes.push_back(
            "a segment is writable and executable, so that code is copied for each process (X4): link without -N "
            "and -z execstack to share it");
      }
    }
  }

  // The pages of a segment behind those that hold bytes of the file.
  void MapZeros() {
    for (const Header& segment : segments_) {
      const std::uint64_t begin =
          segment.file_size == 0 ? PageDown(segment.address) : PageUp(segment.address + segment.file_size);
      const std::uint64_t end = PageUp(segment.address + segment.memory_size);
      if (begin >= end) continue;
      Append("bss", begin, {.prot = ProtOf(segment.flags), .length = end - begin});
    }
    std::stable_sort(program_.map.pieces.begin(), program_.map.pieces.end(),
                     [](const ProgramPiece& a, const ProgramPiece& b) { return a.address < b.address; });
  }

  void MapStack(std::uint64_t stack_size) {
    if (stack_size == 0) stack_size = stack_.memory_size;
    if (stack_size == 0) stack_size = kDefaultStack;
    // As in the kernel: two pages at least.
    stack_size = PageUp(std::clamp(stack_size, 2 * kPageSize, kMaxImage));
    const int executable = (stack_.flags & PF_X) != 0 ? PROT_EXEC : 0;
    Append("stack", 0, {.prot = PROT_READ | PROT_WRITE | executable, .length = stack_size});
  }

  void Append(const std::string& name, std::uint64_t address, const ProgramMapping& mapping) {
    program_.map.pieces.push_back({.name = name,
                                   .address = address,
                                   .length = mapping.length,
                                   .prot = mapping.prot,
                                   .mapping = program_.map.mappings.size()});
    program_.map.mappings.push_back(mapping);
  }

  void FindProgramHeaders() {
    for (const Header& segment : segments_) {
      if (table_ >= segment.offset && table_ - segment.offset < segment.file_size &&
          table_size_ <= segment.file_size - (table_ - segment.offset)) {
        program_.program_headers = segment.address + (table_ - segment.offset);
        return;
      }
    }
  }

  const ProgramFile& file_;
  ElfProgram program_;
  std::uint64_t table_ = 0, table_size_ = 0;  // the program headers in the file, bytes
  std::vector<Header> segments_;              // PT_LOAD, of at least one byte
  Header stack_;                              // PT_GNU_STACK; zeros if there is none
};

}  // namespace

absl::StatusOr<ElfProgram> ParseElf(const ProgramFile& file, std::uint64_t stack_size) {
  return Parser(file).Parse(stack_size);
}

}  // namespace mapbroker::loader
