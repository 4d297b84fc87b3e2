// The pool's memory, whatever it is made of; and names that are not ours.
#include "shm_backend/segment.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <fstream>

#include "shm_backend/available_memory.h"

namespace mapbroker::shm {
namespace {

using ::testing::HasSubstr;

constexpr std::uint64_t kSize = 4 << 20;

// A name of this process's own, so that tests may run beside each other.
std::string OwnName() { return "mapbroker-test-" + std::to_string(getpid()); }

SegmentSpec SpecOf(const std::string& kind, std::uint64_t size = kSize) {
  std::string text = kind;
  if (kind == "shm") text = "shm:/" + OwnName();
  if (kind == "file") text = "file:" + ::testing::TempDir() + OwnName();
  SegmentSpec spec = *ParseSegmentSpec(text);
  spec.size = size;
  return spec;
}

std::string PathOf(const SegmentSpec& spec) {
  return spec.kind == SegmentSpec::Kind::kShm ? "/dev/shm" + spec.name : spec.name;
}

// The pool and whatever was made beside it.
int FilesNamedLike(const SegmentSpec& spec) {
  const std::filesystem::path path(PathOf(spec));
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(path.parent_path())) {
    files += entry.path().filename().string().rfind(path.filename().string(), 0) == 0 ? 1 : 0;
  }
  return files;
}

class SegmentTest : public ::testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Kinds, SegmentTest, ::testing::Values("memfd", "shm", "file"),
                         [](const auto& info) { return std::string(info.param); });

TEST_P(SegmentTest, IsZeroedMemoryThatDescriptorsShare) {
  const auto segment = Segment::Create(SpecOf(GetParam()));
  ASSERT_TRUE(segment.ok()) << segment.status();
  const std::span<std::byte> bytes = (*segment)->bytes();
  ASSERT_EQ(bytes.size(), kSize);
  EXPECT_TRUE(std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{0}; }));

  const UniqueFd client = *(*segment)->ClientDescriptor(/*writable=*/true);
  void* at = mmap(nullptr, kSize, PROT_READ | PROT_WRITE, MAP_SHARED, client.get(), 0);
  ASSERT_NE(at, MAP_FAILED);
  static_cast<char*>(at)[kSize - 1] = 'x';
  EXPECT_EQ(bytes[kSize - 1], std::byte{'x'});
  munmap(at, kSize);
}

TEST_P(SegmentTest, IsCommittedInFull) {
  const auto segment = Segment::Create(SpecOf(GetParam()));
  ASSERT_TRUE(segment.ok());
  const UniqueFd client = *(*segment)->ClientDescriptor(false);
  struct stat stat;
  ASSERT_EQ(fstat(client.get(), &stat), 0);
  EXPECT_GE(static_cast<std::uint64_t>(stat.st_blocks) * 512, kSize);
  EXPECT_EQ(stat.st_mode & 0777, 0600u);
}

TEST_P(SegmentTest, AReadOnlyDescriptorCannotBeMappedWritable) {
  const auto segment = Segment::Create(SpecOf(GetParam()));
  ASSERT_TRUE(segment.ok());
  const UniqueFd client = *(*segment)->ClientDescriptor(/*writable=*/false);
  EXPECT_EQ(mmap(nullptr, kSize, PROT_READ | PROT_WRITE, MAP_SHARED, client.get(), 0), MAP_FAILED);
  EXPECT_EQ(errno, EACCES);
}

// Only root can become another user; as an ordinary user the test sees that the owner, and nobody but the owner, may.
TEST_P(SegmentTest, AnotherUserCannotReopenAReadOnlyDescriptorForWriting) {
  const auto segment = Segment::Create(SpecOf(GetParam()));
  ASSERT_TRUE(segment.ok());
  const UniqueFd client = *(*segment)->ClientDescriptor(/*writable=*/false);
  const pid_t child = fork();
  if (child == 0) {
    if (geteuid() == 0 && (setgid(65534) != 0 || setuid(65534) != 0)) _exit(2);
    const std::string self = "/proc/self/fd/" + std::to_string(client.get());
    const bool opened = open(self.c_str(), O_RDWR) >= 0;
    // The daemon's own user may: it is the owner.
    _exit(opened == (geteuid() != 65534) ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

TEST_P(SegmentTest, LeavesNothingBehind) {
  const SegmentSpec spec = SpecOf(GetParam());
  { ASSERT_TRUE(Segment::Create(spec).ok()); }
  if (spec.kind == SegmentSpec::Kind::kMemfd) return;
  EXPECT_EQ(FilesNamedLike(spec), 0);
}

TEST_P(SegmentTest, MoreMemoryThanThereIsIsRefusedWithBothNumbers) {
  const std::uint64_t too_much = std::uint64_t{1} << 50;
  const auto segment = Segment::Create(SpecOf(GetParam(), too_much));
  EXPECT_EQ(segment.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(segment.status().message()), HasSubstr(std::to_string(too_much)));
  EXPECT_THAT(std::string(segment.status().message()), HasSubstr("but there are "));
  const SegmentSpec spec = SpecOf(GetParam());
  if (spec.kind != SegmentSpec::Kind::kMemfd) {
    EXPECT_FALSE(std::filesystem::exists(PathOf(spec)));
  }
}

TEST_P(SegmentTest, SizesThatAreNoPagesAreRefused) {
  for (const std::uint64_t size : {std::uint64_t{0}, std::uint64_t{1}, kSize + 1}) {
    EXPECT_EQ(Segment::Create(SpecOf(GetParam(), size)).status().code(), absl::StatusCode::kInvalidArgument) << size;
  }
}

TEST(MemfdSegment, NoClientCanShrinkOrGrowIt) {
  const auto segment = Segment::Create(SpecOf("memfd"));
  ASSERT_TRUE(segment.ok());
  const UniqueFd client = *(*segment)->ClientDescriptor(/*writable=*/true);
  EXPECT_EQ(ftruncate(client.get(), 0), -1);
  EXPECT_EQ(errno, EPERM);
  EXPECT_EQ(ftruncate(client.get(), 2 * kSize), -1);
  EXPECT_EQ(errno, EPERM);
}

class NamedSegmentTest : public ::testing::TestWithParam<const char*> {
 protected:
  SegmentSpec spec_ = SpecOf(GetParam());
};
INSTANTIATE_TEST_SUITE_P(Kinds, NamedSegmentTest, ::testing::Values("shm", "file"),
                         [](const auto& info) { return std::string(info.param); });

TEST_P(NamedSegmentTest, HasOneDaemonAtATime) {
  const auto first = Segment::Create(spec_);
  ASSERT_TRUE(first.ok());
  (*first)->bytes()[0] = std::byte{'x'};
  const auto second = Segment::Create(spec_);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(std::string(second.status().message()), HasSubstr("another mapbrokerd"));
  EXPECT_TRUE(std::filesystem::exists(PathOf(spec_)));
  EXPECT_EQ((*first)->bytes()[0], std::byte{'x'});
}

TEST_P(NamedSegmentTest, WhatSomebodyElseKeepsUnderTheNameIsNotTouched) {
  std::ofstream(PathOf(spec_)) << "precious";
  const auto segment = Segment::Create(spec_);
  EXPECT_EQ(segment.status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(std::string(segment.status().message()), HasSubstr("not made by mapbrokerd"));
  std::string contents;
  std::ifstream(PathOf(spec_)) >> contents;
  EXPECT_EQ(contents, "precious");
  EXPECT_EQ(FilesNamedLike(spec_), 1);
  std::filesystem::remove(PathOf(spec_));
}

TEST_P(NamedSegmentTest, WhatADeadDaemonLeftIsMadeAnew) {
  const pid_t child = fork();
  if (child == 0) {
    auto segment = Segment::Create(spec_);
    if (!segment.ok()) _exit(1);
    (*segment)->bytes()[5] = std::byte{'S'};
    _exit(0);  // as a kill would: nothing is destroyed
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_EQ(status, 0);
  ASSERT_TRUE(std::filesystem::exists(PathOf(spec_)));
  // A client that still has the old pool keeps nobody from its name.
  const UniqueFd client(open(PathOf(spec_).c_str(), O_RDWR | O_CLOEXEC));
  ASSERT_EQ(flock(client.get(), LOCK_EX), 0);
  const auto segment = Segment::Create(spec_);
  ASSERT_TRUE(segment.ok()) << segment.status();
  EXPECT_EQ((*segment)->bytes()[5], std::byte{0});
}

TEST(HugePages, WorkWhereTheyAreAndAreRefusedWhereTheyAreNot) {
  SegmentSpec spec = SpecOf("memfd", 16 << 20);
  spec.huge_pages = true;
  const bool there = AvailableHugePages() >= spec.size;
  const auto segment = Segment::Create(spec);
  EXPECT_EQ(segment.ok(), there);
  if (there) {
    EXPECT_EQ((*segment)->attach_granularity(), HugePageSize());
  } else {
    EXPECT_THAT(std::string(segment.status().message()), HasSubstr("huge page"));
  }
}

TEST(HugePages, AreRefusedForKindsThatHaveNone) {
  for (const char* kind : {"shm", "file"}) {
    SegmentSpec spec = SpecOf(kind, 16 << 20);
    spec.huge_pages = true;
    EXPECT_EQ(Segment::Create(spec).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST(ParseSegmentSpec, RefusesWhatNamesNoPool) {
  for (const char* text : {"", "memory", "shm:", "shm:name", "shm:/", "shm:/a/b", "file:", "file:/tmp/"}) {
    EXPECT_EQ(ParseSegmentSpec(text).status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
}

}  // namespace
}  // namespace mapbroker::shm
