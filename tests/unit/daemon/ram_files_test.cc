// Ram files by themselves: names, permissions, contents, memory.
#include "daemon/backing/ram_files.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <random>
#include <string>
#include <vector>

#include "daemon/nommu/refusal.h"

namespace mapbroker::backing {
namespace {

using nommu::ErrnoOf;
using ::testing::ElementsAre;

constexpr std::uint64_t kPage = shm::kPageSize;
constexpr std::uint64_t kPages = 64;
const Credentials kRoot{1, 0, 0};
const Credentials kAlice{2, 1000, 1000, {50}};
const Credentials kBob{3, 1001, 1001, {50}};
constexpr int kCreate = O_RDWR | O_CREAT;

class RamFilesTest : public ::testing::Test {
 protected:
  std::shared_ptr<RamFile> Open(const std::string& name, int flags = kCreate, const Credentials& who = kAlice,
                                mode_t mode = 0600) {
    auto file = files_.Open(name, flags, mode, who);
    EXPECT_TRUE(file.ok()) << file.status();
    return file.ok() ? *file : nullptr;
  }
  int OpenError(const std::string& name, int flags, const Credentials& who = kAlice) {
    return ErrnoOf(files_.Open(name, flags, 0600, who).status());
  }
  static absl::Status Write(const RamFile& file, std::uint64_t offset, const std::string& text) {
    return file.Write(offset, std::as_bytes(std::span(text)));
  }
  static std::string Read(const RamFile& file, std::uint64_t offset, std::size_t count) {
    std::string text(count, '?');
    text.resize(file.node().Read(offset, std::as_writable_bytes(std::span(text))));
    return text;
  }
  std::uint64_t FreePages() {
    pages_.WaitUntilIdle();
    return pages_.statistics().free / kPage;
  }

  std::vector<std::byte> memory_ = std::vector<std::byte>(kPages * kPage);
  shm::PagePool pages_{memory_, /*prefault=*/false};
  RamFiles files_{pages_, memory_};
};

TEST_F(RamFilesTest, NamesAreChecked) {
  EXPECT_EQ(OpenError("/no-scheme", kCreate), EINVAL);
  EXPECT_EQ(OpenError("ram:", kCreate), EINVAL);
  EXPECT_EQ(OpenError("ram:/", kCreate), EINVAL);
  EXPECT_EQ(OpenError("ram:/a/", kCreate), EINVAL);
  EXPECT_EQ(OpenError(std::string("ram:/a\0b", 8), kCreate), EINVAL);
  EXPECT_EQ(OpenError("ram:/" + std::string(kMaxRamName, 'x'), kCreate), ENAMETOOLONG);
  EXPECT_EQ(OpenError("ram:/missing", O_RDWR), ENOENT);
  EXPECT_EQ(OpenError("ram:/a", kCreate | O_DIRECTORY), ENOTDIR);
}

TEST_F(RamFilesTest, ExclusiveCreationFindsWhatExists) {
  const auto file = Open("ram:/a", kCreate | O_EXCL);
  EXPECT_EQ(OpenError("ram:/a", kCreate | O_EXCL), EEXIST);
  EXPECT_EQ(Open("ram:/a", O_RDONLY)->id, file->id);
}

TEST_F(RamFilesTest, PermissionBitsDecideWhoOpens) {
  Open("ram:/private", kCreate, kAlice, 0600);
  EXPECT_EQ(OpenError("ram:/private", O_RDONLY, kBob), EACCES);
  EXPECT_EQ(OpenError("ram:/private", O_RDWR, kRoot), 0);
  Open("ram:/readable", kCreate, kAlice, 0644);
  EXPECT_EQ(OpenError("ram:/readable", O_RDONLY, kBob), 0);
  EXPECT_EQ(OpenError("ram:/readable", O_WRONLY, kBob), EACCES);
  EXPECT_EQ(OpenError("ram:/readable", O_RDONLY | O_TRUNC, kBob), EACCES);
  Open("ram:/of-the-group", kCreate, Credentials{4, 1002, 50}, 0060);
  EXPECT_EQ(OpenError("ram:/of-the-group", O_RDWR, kBob), 0);
}

TEST_F(RamFilesTest, OnlyTheOwnerUnlinks) {
  Open("ram:/a", kCreate, kAlice, 0666);
  EXPECT_EQ(ErrnoOf(files_.Unlink("ram:/a", kBob)), EPERM);
  EXPECT_TRUE(files_.Unlink("ram:/a", kAlice).ok());
  EXPECT_EQ(ErrnoOf(files_.Unlink("ram:/a", kAlice)), ENOENT);
  Open("ram:/b", kCreate, kAlice);
  EXPECT_TRUE(files_.Unlink("ram:/b", kRoot).ok());
}

TEST_F(RamFilesTest, AnUnlinkedFileLastsUntilItIsClosed) {
  auto file = Open("ram:/a");
  ASSERT_TRUE(Write(*file, 0, "text").ok());
  ASSERT_TRUE(files_.Unlink("ram:/a", kAlice).ok());
  EXPECT_EQ(Read(*file, 0, 10), "text");
  EXPECT_EQ(file->Path(), "ram:/a (deleted)");
  EXPECT_NE(Open("ram:/a")->id, file->id);
  EXPECT_EQ(FreePages(), kPages - 1);
  file.reset();
  EXPECT_EQ(FreePages(), kPages);
}

TEST_F(RamFilesTest, FromSizeZeroTheFileGetsOneRunOfZeros) {
  const auto file = Open("ram:/a");
  ASSERT_TRUE(file->node().Grow(10 * kPage - 1).ok());
  const FileStat stat = file->node().Stat();
  EXPECT_EQ(stat.size, 10 * kPage - 1);
  EXPECT_EQ(stat.allocated, 10 * kPage);
  EXPECT_EQ(stat.runs, 1u);
  EXPECT_EQ(Read(*file, 0, 3), std::string(3, '\0'));
  EXPECT_TRUE(file->GetUnmappedArea({.length = 10 * kPage, .flags = MAP_SHARED, .offset = 0}).ok());
  EXPECT_EQ(ErrnoOf(file->GetUnmappedArea({.length = 10 * kPage, .flags = MAP_SHARED, .offset = kPage}).status()),
            ENOSYS);
}

TEST_F(RamFilesTest, WhatCannotBeGatheredChangesNothing) {
  const auto file = Open("ram:/a"), other = Open("ram:/b");
  EXPECT_EQ(ErrnoOf(file->node().Grow((kPages + 1) * kPage)), EFBIG);
  ASSERT_TRUE(other->node().Grow(kPages / 2 * kPage).ok());
  EXPECT_EQ(ErrnoOf(file->node().Grow((kPages / 2 + 1) * kPage)), ENOMEM);
  EXPECT_EQ(ErrnoOf(Write(*file, 0, std::string((kPages / 2 + 1) * kPage, 'x'))), ENOMEM);
  EXPECT_EQ(ErrnoOf(Write(*file, INT64_MAX, "x")), EFBIG);
  EXPECT_EQ(file->node().Stat().size, 0u);
  EXPECT_EQ(FreePages(), kPages / 2);
}

TEST_F(RamFilesTest, AFileGrownLaterHasAHoleThatReadsAsZeros) {
  const auto file = Open("ram:/a");
  ASSERT_TRUE(Write(*file, 0, "x").ok());
  ASSERT_TRUE(file->node().Grow(3 * kPage).ok());
  EXPECT_EQ(file->node().Stat().allocated, kPage);
  EXPECT_EQ(Read(*file, kPage, 2), std::string(2, '\0'));
  EXPECT_EQ(ErrnoOf(file->GetUnmappedArea({.length = 3 * kPage, .flags = MAP_SHARED, .offset = 0}).status()), ENOSYS);
  EXPECT_TRUE(file->GetUnmappedArea({.length = kPage, .flags = MAP_SHARED, .offset = 0}).ok());
}

TEST_F(RamFilesTest, ShrinkingZeroesTheRestOfTheLastPage) {
  const auto file = Open("ram:/a");
  ASSERT_TRUE(Write(*file, 0, std::string(2 * kPage, 'x')).ok());
  file->node().Shrink(100);
  EXPECT_EQ(FreePages(), kPages - 1);
  ASSERT_TRUE(file->node().Grow(kPage).ok());
  EXPECT_EQ(Read(*file, 99, 2), std::string("x\0", 2));
}

TEST_F(RamFilesTest, HeldPagesOutliveTheirFile) {
  auto file = Open("ram:/a");
  ASSERT_TRUE(Write(*file, 0, std::string(2 * kPage, 'x')).ok());
  const auto address = file->GetUnmappedArea({.length = 2 * kPage, .flags = MAP_SHARED, .offset = 0});
  ASSERT_TRUE(address.ok());
  file->node().Shrink(0);
  EXPECT_EQ(FreePages(), kPages - 2);
  EXPECT_EQ(memory_[*address + kPage], std::byte{'x'});
  file->Close(*address, 2 * kPage, true);
  EXPECT_EQ(FreePages(), kPages);
}

TEST_F(RamFilesTest, AppendingWritesAtTheEnd) {
  const auto file = Open("ram:/a", O_WRONLY | O_CREAT | O_APPEND);
  ASSERT_TRUE(Write(*file, 0, "ab").ok());
  ASSERT_TRUE(Write(*file, 0, "cd").ok());
  EXPECT_EQ(Read(*file, 0, 9), "abcd");
}

TEST_F(RamFilesTest, ListsByPrefixAndInPortions) {
  for (const char* name : {"ram:/b/2", "ram:/a", "ram:/b/1", "ram:/c"}) Open(name);
  const auto names = [](const std::vector<FileStat>& listed) {
    std::vector<std::string> result;
    for (const FileStat& stat : listed) result.push_back(stat.name);
    return result;
  };
  EXPECT_THAT(names(files_.List("ram:/b/", "", 9)), ElementsAre("ram:/b/1", "ram:/b/2"));
  EXPECT_THAT(names(files_.List("", "", 2)), ElementsAre("ram:/a", "ram:/b/1"));
  EXPECT_THAT(names(files_.List("", "ram:/b/1", 9)), ElementsAre("ram:/b/2", "ram:/c"));
}

TEST_F(RamFilesTest, HoldsWhatAStringWouldHold) {
  const auto file = Open("ram:/a");
  std::string model;
  std::mt19937 random(1);
  for (int step = 0; step < 3000; ++step) {
    const std::uint64_t at = random() % (20 * kPage), count = random() % (3 * kPage);
    switch (random() % 4) {
      case 0:
        if (at <= model.size()) {
          file->node().Shrink(at);
        } else {
          ASSERT_TRUE(file->node().Grow(at).ok());
        }
        model.resize(at);
        break;
      case 1:
        ASSERT_EQ(Read(*file, at, count), at < model.size() ? model.substr(at, count) : "");
        break;
      default:
        if (count == 0) break;
        if (model.size() < at + count) model.resize(at + count);
        model.replace(at, count, count, static_cast<char>('a' + step % 26));
        ASSERT_TRUE(Write(*file, at, model.substr(at, count)).ok());
    }
    ASSERT_EQ(file->node().Size(), model.size());
  }
  ASSERT_EQ(Read(*file, 0, model.size() + 1), model);
  file->node().Shrink(0);
  EXPECT_EQ(FreePages(), kPages);
}

}  // namespace
}  // namespace mapbroker::backing
