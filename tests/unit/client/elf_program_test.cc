#include "client/loader/elf_program.h"

#include <elf.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "tests/unit/client/program_bytes.h"

namespace mapbroker::loader {
namespace {

using ::testing::HasSubstr;

// A program as a linker makes it: read-only data with the headers, text, and data with bss behind them.
struct Elf {
  Elf64_Ehdr header{};
  std::vector<Elf64_Phdr> segments;
  std::size_t size = 0x3800;

  Elf() {
    std::memcpy(header.e_ident, ELFMAG, SELFMAG);
    header.e_ident[EI_CLASS] = ELFCLASS64;
    header.e_ident[EI_DATA] = ELFDATA2LSB;
    header.e_ident[EI_VERSION] = EV_CURRENT;
    header.e_type = ET_DYN;
    header.e_machine = EM_X86_64;
    header.e_entry = 0x1100;
    header.e_phoff = sizeof(Elf64_Ehdr);
    header.e_phentsize = sizeof(Elf64_Phdr);
    Segment(PF_R, 0, 0, 0x800, 0x800);
    Segment(PF_R | PF_X, 0x1000, 0x1000, 0x1234, 0x1234);
    Segment(PF_R | PF_W, 0x3000, 0x4000, 0x800, 0x5000);
  }
  void Segment(unsigned flags, std::uint64_t offset, std::uint64_t address, std::uint64_t file, std::uint64_t memory,
               unsigned type = PT_LOAD) {
    segments.push_back({type, flags, offset, address, address, file, memory, 0x1000});
  }
  std::string Bytes() const {
    Elf64_Ehdr written = header;
    if (written.e_phnum == 0) written.e_phnum = static_cast<Elf64_Half>(segments.size());
    std::string bytes(size, '\0');
    std::memcpy(bytes.data(), &written, sizeof(written));
    std::memcpy(bytes.data() + sizeof(written), segments.data(), segments.size() * sizeof(Elf64_Phdr));
    return bytes;
  }
};

absl::StatusOr<ElfProgram> Parse(const std::string& bytes, std::uint64_t stack = 0) {
  return ParseElf(FileOf(bytes), stack);
}

TEST(ElfProgramTest, SegmentsBecomeMappings) {
  const auto program = Parse(Elf().Bytes());
  ASSERT_TRUE(program.ok()) << program.status();
  EXPECT_EQ(program->entry, 0x1100u);
  EXPECT_EQ(program->program_headers, sizeof(Elf64_Ehdr));
  EXPECT_EQ(program->image_size, 0x9000u);
  EXPECT_EQ(program->map.machine, "x86-64");
  std::string pieces;
  for (const ProgramPiece& piece : program->map.pieces) {
    const ProgramMapping& mapping = program->map.mappings[piece.mapping];
    pieces += piece.name + " " + std::to_string(piece.address / 4096) + "+" + std::to_string(piece.length / 4096) +
              (mapping.memory == ProgramMemory::kShared   ? " shared"
               : mapping.memory == ProgramMemory::kCopied ? " copied"
                                                          : " zeroed") +
              ";";
  }
  // X4: a segment's last page of file bytes is copied, the whole pages behind it are zeros of one's own.
  EXPECT_EQ(pieces, "rodata 0+1 shared;text 1+2 shared;data 4+1 copied;bss 5+4 zeroed;stack 0+32 zeroed;");
  EXPECT_EQ(program->map.mappings[2].file_length, 0x800u);
  EXPECT_EQ(program->map.shared_bytes(), 3 * kPageSize);
}

TEST(ElfProgramTest, TheStackIsWhatIsAskedFor) {
  Elf elf;
  EXPECT_EQ(Parse(elf.Bytes())->map.mappings.back().length, kDefaultStack);
  elf.Segment(PF_R | PF_W, 0, 0, 0, 100'000, PT_GNU_STACK);
  EXPECT_EQ(Parse(elf.Bytes())->map.mappings.back().length, PageUp(100'000));
  EXPECT_EQ(Parse(elf.Bytes(), 1)->map.mappings.back().length, 2 * kPageSize);
  EXPECT_EQ(Parse(elf.Bytes())->map.mappings.back().prot, PROT_READ | PROT_WRITE);
  elf.segments.back().p_flags |= PF_X;
  EXPECT_EQ(Parse(elf.Bytes())->map.mappings.back().prot, PROT_READ | PROT_WRITE | PROT_EXEC);
}

TEST(ElfProgramTest, SegmentsOnOnePageOfTheFileHaveOneMapping) {
  Elf elf;
  elf.segments[0] = {PT_LOAD, PF_R, 0, 0, 0, 0x1080, 0x1080, 0x1000};
  elf.segments[1] = {PT_LOAD, PF_R | PF_X, 0x1080, 0x2080, 0x2080, 0xf00, 0xf00, 0x1000};
  elf.header.e_entry = 0x2100;
  const auto program = Parse(elf.Bytes());
  ASSERT_TRUE(program.ok()) << program.status();
  EXPECT_EQ(program->map.mappings[0].length, 0x2000u);
  EXPECT_EQ(program->map.mappings[0].prot, PROT_READ | PROT_EXEC);
  EXPECT_EQ(program->map.pieces[0].mapping, program->map.pieces[1].mapping);
  EXPECT_EQ(program->map.pieces[1].start, 0x1000u);
}

struct Fault {
  const char* name;
  std::function<void(Elf&)> commit;
  const char* reason;
};

class BadElf : public ::testing::TestWithParam<Fault> {};

TEST_P(BadElf, IsRefusedWithItsReason) {
  Elf elf;
  GetParam().commit(elf);
  const auto program = Parse(elf.Bytes());
  ASSERT_FALSE(program.ok());
  EXPECT_THAT(std::string(program.status().message()), HasSubstr(GetParam().reason));
}

INSTANTIATE_TEST_SUITE_P(
    Faults, BadElf,
    ::testing::Values(
        Fault{"Magic", [](Elf& elf) { elf.header.e_ident[0] = 'x'; }, "neither ELF nor bFLT"},
        Fault{"Class", [](Elf& elf) { elf.header.e_ident[EI_CLASS] = 3; }, "class 3"},
        Fault{"Order", [](Elf& elf) { elf.header.e_ident[EI_DATA] = 0; }, "order of bytes"},
        Fault{"Version", [](Elf& elf) { elf.header.e_ident[EI_VERSION] = 9; }, "version 9"},
        Fault{"FixedAddress", [](Elf& elf) { elf.header.e_type = ET_EXEC; }, "-static-pie"},
        Fault{"Object", [](Elf& elf) { elf.header.e_type = ET_REL; }, "is no program"},
        Fault{"Dynamic", [](Elf& elf) { elf.Segment(PF_R, 0x200, 0x200, 10, 10, PT_INTERP); }, "dynamically"},
        Fault{"HeaderSize", [](Elf& elf) { elf.header.e_phentsize = 7; }, "program headers have 7"},
        Fault{"HeadersOutside", [](Elf& elf) { elf.header.e_phoff = UINT64_MAX - 8; }, "past the end"},
        Fault{"TooManyHeaders", [](Elf& elf) { elf.header.e_phnum = 0xffff; }, "program headers take"},
        Fault{"NothingToLoad",
              [](Elf& elf) {
                elf.segments.assign(1, {PT_NOTE, 0, 0, 0, 0, 0, 0, 0});
              },
              "no segment"},
        Fault{"MoreInFile", [](Elf& elf) { elf.segments[1].p_filesz = 0x2000; }, "more bytes in the file"},
        Fault{"Truncated", [](Elf& elf) { elf.size = 0x3100; }, "truncated"},
        Fault{"OffsetOverflows", [](Elf& elf) { elf.segments[1].p_offset = UINT64_MAX - 0xfff; }, "truncated"},
        Fault{"AddressOverflows", [](Elf& elf) { elf.segments[2].p_vaddr = UINT64_MAX - 0xfff; }, "largest possible"},
        Fault{"TooLarge", [](Elf& elf) { elf.segments[2].p_memsz = kMaxImage; }, "largest possible"},
        Fault{"Alignment", [](Elf& elf) { elf.segments[1].p_align = 3; }, "no power of two"},
        Fault{"Congruence", [](Elf& elf) { elf.segments[1].p_vaddr += 8; }, "elsewhere within its page"},
        Fault{"Overlap", [](Elf& elf) { elf.segments[2].p_vaddr = 0x2000; }, "overlaps"},
        Fault{"Order2", [](Elf& elf) { std::swap(elf.segments[0], elf.segments[2]); }, "overlaps"},
        Fault{"EntryInData", [](Elf& elf) { elf.header.e_entry = 0x4000; }, "entry point"},
        Fault{"ManySegments",
              [](Elf& elf) {
                for (std::uint64_t i = 0; i < 40; ++i) elf.Segment(PF_R, 0, 0x10000 + i * 0x1000, 1, 1);
              },
              "segments to load"}),
    [](const auto& fault) { return std::string(fault.param.name); });

TEST(ElfProgramTest, NoLengthOfAFileIsRead) {
  const std::string whole = Elf().Bytes();
  for (std::size_t length = 0; length < 0x3000; length += length < 300 ? 1 : 97) {
    EXPECT_FALSE(Parse(whole.substr(0, length)).ok()) << length;
  }
}

// 32 bits and the other order of bytes, as a target may have them.
TEST(ElfProgramTest, ABigEndian32BitProgram) {
  std::string bytes(0x2000, '\0');
  const auto put = [&](std::size_t at, std::uint64_t value, std::size_t size) {
    for (std::size_t i = 0; i < size; ++i) bytes[at + i] = static_cast<char>(value >> (8 * (size - 1 - i)));
  };
  std::memcpy(bytes.data(), ELFMAG "\x01\x02\x01", 7);
  put(offsetof(Elf32_Ehdr, e_type), ET_DYN, 2);
  put(offsetof(Elf32_Ehdr, e_machine), EM_68K, 2);
  put(offsetof(Elf32_Ehdr, e_entry), 0x1010, 4);
  put(offsetof(Elf32_Ehdr, e_phoff), sizeof(Elf32_Ehdr), 4);
  put(offsetof(Elf32_Ehdr, e_phentsize), sizeof(Elf32_Phdr), 2);
  put(offsetof(Elf32_Ehdr, e_phnum), 1, 2);
  const std::size_t at = sizeof(Elf32_Ehdr);
  put(at + offsetof(Elf32_Phdr, p_type), PT_LOAD, 4);
  put(at + offsetof(Elf32_Phdr, p_flags), PF_R | PF_X, 4);
  put(at + offsetof(Elf32_Phdr, p_offset), 0, 4);
  put(at + offsetof(Elf32_Phdr, p_filesz), 0x1800, 4);
  put(at + offsetof(Elf32_Phdr, p_memsz), 0x1800, 4);
  const auto program = Parse(bytes);
  ASSERT_TRUE(program.ok()) << program.status();
  EXPECT_TRUE(program->big_endian);
  EXPECT_FALSE(program->is_64_bit);
  EXPECT_EQ(program->entry, 0x1010u);
  EXPECT_EQ(program->map.mappings[0].length, 0x2000u);
}

}  // namespace
}  // namespace mapbroker::loader
