#include "client/loader/flat_program.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <zlib.h>

#include <array>
#include <functional>
#include <string>
#include <vector>

#include "tests/unit/client/program_bytes.h"

namespace mapbroker::loader {
namespace {

using ::testing::HasSubstr;

enum { kRevision = 1, kEntry, kDataStart, kDataEnd, kBssEnd, kStackSize, kRelocStart, kRelocCount, kFlags };
constexpr std::uint32_t kHeader = 64, kCode = 0x1000 - kHeader;

// A page of text with the header, 256 bytes of data, 1000 of bss, 8 KiB of stack.
struct Flat {
  std::array<std::uint32_t, 16> words{};
  std::string text = std::string(kCode, 'T'), data = std::string(256, 'D');
  std::vector<std::uint32_t> relocations;
  std::string tail;  // instead of text, data and relocations, if it is not empty

  Flat() {
    words[kRevision] = 4;
    words[kEntry] = kHeader;
    words[kDataStart] = 0x1000;
    words[kDataEnd] = words[kRelocStart] = 0x1100;
    words[kBssEnd] = 0x1100 + 1000;
    words[kStackSize] = 8192;
  }
  static void Put(std::string& bytes, std::uint32_t word) {
    for (int shift = 24; shift >= 0; shift -= 8) bytes.push_back(static_cast<char>(word >> shift));
  }
  static void Set(std::string& bytes, std::size_t at, std::uint32_t word) {
    std::string big;
    Put(big, word);
    bytes.replace(at, 4, big);
  }
  std::string Contents() const {
    std::string bytes = text + data;
    for (const std::uint32_t relocation : relocations) Put(bytes, relocation);
    return bytes;
  }
  std::string Bytes() {
    words[kRelocCount] = words[kRelocCount] == 0 ? static_cast<std::uint32_t>(relocations.size()) : words[kRelocCount];
    std::string bytes = "bFLT";
    for (std::size_t i = 1; i < words.size(); ++i) Put(bytes, words[i]);
    return bytes + (tail.empty() ? Contents() : tail);
  }
};

absl::StatusOr<FlatProgram> Parse(Flat flat, std::uint64_t stack = 0) {
  const std::string bytes = flat.Bytes();
  return ParseFlat(FileOf(bytes), stack);
}

std::string Gzip(const std::string& plain) {
  z_stream stream{};
  deflateInit2(&stream, Z_BEST_COMPRESSION, Z_DEFLATED, MAX_WBITS + 16, 8, Z_DEFAULT_STRATEGY);
  std::string packed(plain.size() + 100, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(plain.data()));
  stream.avail_in = static_cast<uInt>(plain.size());
  stream.next_out = reinterpret_cast<Bytef*>(packed.data());
  stream.avail_out = static_cast<uInt>(packed.size());
  EXPECT_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
  packed.resize(stream.total_out);
  deflateEnd(&stream);
  return packed;
}

TEST(FlatProgramTest, TextIsSharedWhenNothingChangesIt) {
  const auto program = Parse(Flat());
  ASSERT_TRUE(program.ok()) << program.status();
  EXPECT_EQ(program->text_is_copied_since, "");
  EXPECT_EQ(program->map.mappings[0].memory, ProgramMemory::kShared);
  EXPECT_EQ(program->map.mappings[0].length, kPageSize);
  EXPECT_EQ(program->bss_length, 1000u);
  EXPECT_EQ(program->stack_length, 8192u);
  EXPECT_EQ(program->map.mappings[1].memory, ProgramMemory::kCopied);
}

TEST(FlatProgramTest, TextIsCopiedWhereItMustBe) {
  Flat ram;
  ram.words[kFlags] = 1;
  EXPECT_THAT(Parse(ram)->text_is_copied_since, HasSubstr("RAM"));
  Flat patched;
  patched.relocations = {0x10};
  Flat::Set(patched.text, 0x10, 0x20);
  EXPECT_THAT(Parse(patched)->text_is_copied_since, HasSubstr("relocations"));
  EXPECT_EQ(Parse(patched)->map.shared_bytes(), 0u);
  Flat packed;
  packed.words[kFlags] = 4;
  packed.tail = Gzip(packed.Contents());
  const auto program = Parse(packed);
  ASSERT_TRUE(program.ok()) << program.status();
  EXPECT_THAT(program->text_is_copied_since, HasSubstr("compressed"));
  EXPECT_EQ(program->data[0], std::byte{'D'});
}

TEST(FlatProgramTest, TheStackIsTheHeadersOrTheCallers) { EXPECT_EQ(Parse(Flat(), 20'000)->stack_length, 20'000u); }

TEST(FlatProgramTest, RelocationsPointIntoTextAndData) {
  Flat flat;
  flat.relocations = {kCode + 4, kCode + 8, kCode + 12};
  Flat::Set(flat.data, 4, 0x100);         // into the text
  Flat::Set(flat.data, 8, kCode + 0x20);  // into the data
  Flat::Set(flat.data, 12, 0);            // a null pointer stays one
  auto program = Parse(flat);
  ASSERT_TRUE(program.ok()) << program.status();
  EXPECT_EQ(program->text_is_copied_since, "");
  ASSERT_TRUE(Relocate(*program, ByteOrder::kLittle, 0x4000'0000, 0x5000'0000).ok());
  const auto word = [&](std::size_t at) {
    std::uint32_t value = 0;
    for (std::size_t i = 0; i < 4; ++i) value |= std::to_integer<std::uint32_t>(program->data[at + i]) << (8 * i);
    return value;
  };
  EXPECT_EQ(word(4), 0x4000'0000u + kHeader + 0x100);
  EXPECT_EQ(word(8), 0x5000'0020u);
  EXPECT_EQ(word(12), 0u);
}

TEST(FlatProgramTest, AGotIsRelocatedToItsEnd) {
  Flat flat;
  flat.words[kFlags] = 2;
  Flat::Set(flat.data, 0, 0x100);
  Flat::Set(flat.data, 4, 0);
  Flat::Set(flat.data, 8, 0xffff'ffff);
  auto program = Parse(flat);
  ASSERT_TRUE(program.ok()) << program.status();
  ASSERT_TRUE(Relocate(*program, ByteOrder::kBig, 0x4000'0000, 0x5000'0000).ok());
  EXPECT_EQ(program->data[0], std::byte{0x40});
  EXPECT_EQ(program->data[2], std::byte{0x01});
  EXPECT_EQ(program->data[3], std::byte{0x40});
}

struct Fault {
  const char* name;
  std::function<void(Flat&)> commit;
};

class BadFlat : public ::testing::TestWithParam<Fault> {};

TEST_P(BadFlat, IsRefused) {
  Flat flat;
  GetParam().commit(flat);
  const auto program = Parse(flat);
  ASSERT_FALSE(program.ok());
  EXPECT_GT(program.status().message().size(), 15u);
}

INSTANTIATE_TEST_SUITE_P(
    Faults, BadFlat,
    ::testing::Values(Fault{"Version", [](Flat& flat) { flat.words[kRevision] = 3; }},
                      Fault{"DataBeforeText", [](Flat& flat) { flat.words[kDataStart] = 32; }},
                      Fault{"DataEndsBeforeItBegins", [](Flat& flat) { flat.words[kDataEnd] = 0xfff; }},
                      Fault{"BssEndsBeforeItBegins", [](Flat& flat) { flat.words[kBssEnd] = 0x10ff; }},
                      Fault{"HugeData", [](Flat& flat) { flat.words[kDataEnd] = flat.words[kBssEnd] = 0xffff'ffff; }},
                      Fault{"HugeBss", [](Flat& flat) { flat.words[kBssEnd] = 0xffff'ffff; }},
                      Fault{"HugeStack", [](Flat& flat) { flat.words[kStackSize] = 0xffff'ffff; }},
                      Fault{"EntryOutside", [](Flat& flat) { flat.words[kEntry] = 0x2000; }},
                      Fault{"EntryInTheHeader", [](Flat& flat) { flat.words[kEntry] = 8; }},
                      Fault{"UnknownFlag", [](Flat& flat) { flat.words[kFlags] = 0x8000; }},
                      Fault{"RelocationsOutsideTheFile", [](Flat& flat) { flat.words[kRelocCount] = 1000; }},
                      Fault{"ManyRelocations", [](Flat& flat) { flat.words[kRelocCount] = 0x4000'0001; }},
                      Fault{"ARelocationOutside", [](Flat& flat) { flat.relocations = {kCode + 253}; }},
                      Fault{"AFarRelocation", [](Flat& flat) { flat.relocations = {0xffff'fffe}; }},
                      Fault{"APointerOutside",
                            [](Flat& flat) {
                              flat.relocations = {kCode};
                              Flat::Set(flat.data, 0, 0x00ff'0000);
                            }},
                      Fault{"AGotWithoutEnd",
                            [](Flat& flat) {
                              flat.words[kFlags] = 2;
                              flat.data.assign(256, '\0');
                            }},
                      Fault{"Truncated", [](Flat& flat) { flat.data.resize(100); }},
                      Fault{"NotCompressed", [](Flat& flat) { flat.words[kFlags] = 4; }},
                      Fault{"CompressedTooShort",
                            [](Flat& flat) {
                              flat.words[kFlags] = 4;
                              flat.tail = Gzip(std::string(100, 'x'));
                            }}),
    [](const auto& fault) { return std::string(fault.param.name); });

}  // namespace
}  // namespace mapbroker::loader
