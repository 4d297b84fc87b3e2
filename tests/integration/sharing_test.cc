// Who shares what with whom: rules S1 to S8 between real processes.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <string>

#include "shm_backend/unique_fd.h"
#include "tests/integration/connect.h"
#include "tests/integration/daemon.h"
#include "tests/integration/peer.h"

namespace mapbroker::testing {
namespace {

constexpr std::uint64_t kPage = 4096;
constexpr std::uint64_t kSize = 5 * kPage + 100;

class Sharing : public ::testing::Test {
 protected:
  PoolStatistics Statistics() { return *observer_.Statistics(); }

  Daemon daemon_;
  Client observer_ = Connect(daemon_);
  const std::string file_ = daemon_.files().MakeFile("file", kSize);
};

class ModernSharing : public ::testing::Test {
 protected:
  Daemon daemon_{{"--profile", "modern"}};
  const std::string file_ = daemon_.files().MakeFile("file", kSize);
};

TEST_F(Sharing, TwoProcessesGetTheSameAddressAndOneRegion) {
  Peer first(daemon_.runtime_dir()), second(daemon_.runtime_dir());
  const MapReply a = first.Map(file_, {.length = kSize});
  const MapReply b = second.Map(file_, {.length = kSize});
  EXPECT_EQ(a.error, 0) << a.sentence;
  EXPECT_EQ(a.kind, MappingKind::kSharedCopy);
  EXPECT_EQ(a.address, b.address);
  EXPECT_FALSE(a.existing);
  EXPECT_TRUE(b.existing);
  const PoolStatistics statistics = Statistics();
  EXPECT_EQ(statistics.regions, 1u);
  EXPECT_EQ(statistics.mappings, 2u);
  EXPECT_EQ(statistics.fills_total, 1u);
  EXPECT_EQ(statistics.used, 6 * kPage);
  EXPECT_EQ(statistics.saved_by_sharing, 6 * kPage);
}

TEST_F(Sharing, AProcessSharesWithItself) {
  Peer peer(daemon_.runtime_dir());
  const MapReply a = peer.Map(file_, {.length = kSize});
  const MapReply b = peer.Map(file_, {.length = kSize});
  EXPECT_EQ(a.address, b.address);
  EXPECT_EQ(peer.Unmap(a), 0);
  EXPECT_EQ(peer.Read(b), ReadFile(file_));
}

TEST_F(Sharing, EveryProcessReadsTheFilesBytes) {
  Peer first(daemon_.runtime_dir()), second(daemon_.runtime_dir());
  const MapReply a = first.Map(file_, {.length = kSize});
  const MapReply b = second.Map(file_, {.length = kSize});
  EXPECT_EQ(first.Read(a), ReadFile(file_));
  EXPECT_EQ(second.Read(b), ReadFile(file_));
}

TEST_F(Sharing, ProtectionsNeedNotBeEqual) {
  Peer first(daemon_.runtime_dir()), second(daemon_.runtime_dir());
  const MapReply a = first.Map(file_, {.length = kSize, .prot = PROT_READ});
  const MapReply b = second.Map(file_, {.length = kSize, .prot = PROT_READ | PROT_EXEC});
  ASSERT_EQ(b.error, 0) << b.sentence;
  EXPECT_EQ(a.address, b.address);
}

TEST_F(Sharing, AHardLinkIsTheSameFile) {
  const std::string link = daemon_.files().Path("link");
  ASSERT_EQ(::link(file_.c_str(), link.c_str()), 0);
  Peer first(daemon_.runtime_dir()), second(daemon_.runtime_dir());
  EXPECT_EQ(first.Map(file_, {.length = kSize}).address, second.Map(link, {.length = kSize}).address);
}

TEST_F(Sharing, APrivateWritableCopyIsSeenByNobodyElse) {
  const Bytes contents = ReadFile(file_);
  Peer reader(daemon_.runtime_dir()), writer(daemon_.runtime_dir());
  const MapReply shared = reader.Map(file_, {.length = kSize});
  const MapReply own = writer.Map(file_, {.length = kSize, .prot = PROT_READ | PROT_WRITE});
  ASSERT_EQ(own.error, 0) << own.sentence;
  EXPECT_EQ(own.kind, MappingKind::kPrivateCopy);
  EXPECT_NE(own.address, shared.address);
  EXPECT_EQ(writer.Read(own), contents);

  writer.Scribble(own);
  EXPECT_NE(writer.Read(own), contents);
  EXPECT_EQ(reader.Read(shared), contents);
  EXPECT_EQ(ReadFile(file_), contents);
  Peer latecomer(daemon_.runtime_dir());
  EXPECT_EQ(latecomer.Read(latecomer.Map(file_, {.length = kSize})), contents);
}

TEST_F(Sharing, APrivateWritableCopyComesFromTheFileAndNotFromAnothersWrites) {
  const Bytes contents = ReadFile(file_);
  Peer first(daemon_.runtime_dir()), second(daemon_.runtime_dir());
  const MapReply a = first.Map(file_, {.length = kSize, .prot = PROT_READ | PROT_WRITE});
  first.Scribble(a);
  const MapReply b = second.Map(file_, {.length = kSize, .prot = PROT_READ | PROT_WRITE});
  EXPECT_NE(a.address, b.address);
  EXPECT_FALSE(b.existing);
  EXPECT_EQ(second.Read(b), contents);
}

TEST_F(Sharing, LaterWritesToTheFileDoNotShowWhileACopyLives) {
  const Bytes before = ReadFile(file_), after(kSize, 'x');
  Peer first(daemon_.runtime_dir()), second(daemon_.runtime_dir());
  const MapReply a = first.Map(file_, {.length = kSize});
  std::fstream(file_, std::ios::in | std::ios::out | std::ios::binary) << after;

  EXPECT_EQ(first.Read(a), before);
  const MapReply b = second.Map(file_, {.length = kSize});
  EXPECT_TRUE(b.existing);
  EXPECT_EQ(second.Read(b), before);

  EXPECT_EQ(first.Unmap(a), 0);
  EXPECT_EQ(second.Unmap(b), 0);
  EXPECT_EQ(second.Read(second.Map(file_, {.length = kSize})), after);
}

TEST_F(Sharing, WhatLiesPastTheEndOfTheFileIsZero) {
  // Something else lay in the pool before, and must not shine through.
  Peer peer(daemon_.runtime_dir());
  const MapReply dirty =
      peer.Map("", {.length = 16 * kPage, .prot = PROT_READ | PROT_WRITE, .flags = MAP_PRIVATE | MAP_ANONYMOUS});
  peer.Scribble(dirty);
  EXPECT_EQ(peer.Unmap(dirty), 0);

  const MapReply mapping = peer.Map(file_, {.length = 8 * kPage});
  ASSERT_EQ(mapping.error, 0) << mapping.sentence;
  const Bytes bytes = peer.Read(mapping);
  EXPECT_EQ(bytes.Part(0, kSize), ReadFile(file_));
  EXPECT_EQ(bytes.Part(kSize), Bytes(8 * kPage - kSize, '\0'));
}

TEST_F(Sharing, AMappingThatStartsPastTheEndOfTheFileIsZero) {
  Peer peer(daemon_.runtime_dir());
  const MapReply mapping = peer.Map(file_, {.length = kPage, .offset = 64 * kPage});
  ASSERT_EQ(mapping.error, 0) << mapping.sentence;
  EXPECT_EQ(peer.Read(mapping), Bytes(kPage, '\0'));
}

TEST_F(Sharing, AnEmptyFileMapsAsZeros) {
  Peer peer(daemon_.runtime_dir());
  const MapReply mapping = peer.Map(daemon_.files().WriteFile("empty", ""), {.length = kPage});
  ASSERT_EQ(mapping.error, 0) << mapping.sentence;
  EXPECT_EQ(peer.Read(mapping), Bytes(kPage, '\0'));
}

TEST_F(Sharing, AnOffsetSelectsItsPagesOfTheFile) {
  Peer peer(daemon_.runtime_dir());
  const MapReply mapping = peer.Map(file_, {.length = kPage, .offset = 2 * kPage});
  EXPECT_EQ(peer.Read(mapping), ReadFile(file_).Part(2 * kPage, kPage));
}

TEST_F(Sharing, ClassicSharesTheSamePagesWhateverTheLengthInBytes) {
  Peer first(daemon_.runtime_dir()), second(daemon_.runtime_dir());
  const MapReply a = first.Map(file_, {.length = 2 * kPage});
  const MapReply b = second.Map(file_, {.length = 2 * kPage - 10});
  EXPECT_EQ(a.address, b.address);
  EXPECT_EQ(b.length, 2 * kPage - 10);
}

TEST_F(Sharing, ClassicRefusesEveryOtherOverlap) {
  Peer first(daemon_.runtime_dir()), second(daemon_.runtime_dir());
  ASSERT_EQ(first.Map(file_, {.length = 2 * kPage, .offset = kPage}).error, 0);
  struct Range {
    std::uint64_t offset, pages;
  };
  for (const auto& [offset, pages] : {Range{kPage, 1}, {2 * kPage, 1}, {0, 2}, {0, 4}, {2 * kPage, 2}}) {
    const MapReply overlap = second.Map(file_, {.length = pages * kPage, .offset = offset});
    EXPECT_EQ(overlap.error, EINVAL) << pages << " pages from " << offset;
    EXPECT_EQ(overlap.rule, "S4");
  }
  EXPECT_EQ(second.Map(file_, {.length = kPage, .offset = 0}).error, 0);
  EXPECT_EQ(second.Map(file_, {.length = kPage, .offset = 3 * kPage}).error, 0);
}

TEST_F(Sharing, AnonymousMemoryIsZeroedAndOnesOwn) {
  for (const int type : {MAP_PRIVATE, MAP_SHARED}) {
    Peer first(daemon_.runtime_dir()), second(daemon_.runtime_dir());
    const MapOptions anonymous{.length = 3 * kPage, .prot = PROT_READ | PROT_WRITE, .flags = type | MAP_ANONYMOUS};
    const MapReply a = first.Map("", anonymous);
    const MapReply b = second.Map("", anonymous);
    EXPECT_EQ(a.kind, MappingKind::kAnonymous);
    EXPECT_NE(a.address, b.address);
    first.Scribble(a);
    EXPECT_EQ(second.Read(b), Bytes(3 * kPage, '\0'));
  }
}

TEST_F(Sharing, FreshMemoryHoldsNothingOfItsLastUser) {
  Peer peer(daemon_.runtime_dir());
  const MapOptions most{.length = 60 << 20, .prot = PROT_READ | PROT_WRITE, .flags = MAP_PRIVATE | MAP_ANONYMOUS};
  const MapReply before = peer.Map("", most);
  const std::uint64_t zeros = peer.Hash(before);
  peer.Scribble(before);
  ASSERT_NE(peer.Hash(before), zeros);
  EXPECT_EQ(peer.Unmap(before), 0);
  // Nearly the whole pool, so that it must be the same memory.
  const MapReply after = peer.Map("", most);
  ASSERT_EQ(after.error, 0) << after.sentence;
  EXPECT_EQ(peer.Hash(after), zeros);
}

TEST_F(Sharing, ASharedMappingOfAnOrdinaryFileIsRefused) {
  Peer peer(daemon_.runtime_dir());
  const MapReply reply = peer.Map(file_, {.length = kSize, .flags = MAP_SHARED});
  EXPECT_EQ(reply.error, ENODEV);
  EXPECT_EQ(reply.rule, "M15");
  EXPECT_FALSE(reply.sentence.empty());
}

TEST_F(Sharing, AReadOnlyMappingCannotBeWritten) {
  Client client = Connect(daemon_);
  const absl::StatusOr<Mapping> mapping =
      client.Map({.length = kPage, .prot = PROT_READ, .flags = MAP_PRIVATE | MAP_ANONYMOUS});
  ASSERT_TRUE(mapping.ok()) << mapping.status();
  // The kernel answers with an errno where an own write would be the end of the test.
  const shm::UniqueFd zeros(open("/dev/zero", O_RDONLY | O_CLOEXEC));
  EXPECT_EQ(read(zeros.get(), mapping->bytes().data(), 1), -1);
  EXPECT_EQ(errno, EFAULT);
}

TEST_F(ModernSharing, ARangeInsideALivingCopySharesIt) {
  Peer first(daemon_.runtime_dir()), second(daemon_.runtime_dir());
  const MapReply whole = first.Map(file_, {.length = kSize});
  const MapReply part = second.Map(file_, {.length = 2 * kPage, .offset = kPage});
  ASSERT_EQ(part.error, 0) << part.sentence;
  EXPECT_TRUE(part.existing);
  EXPECT_EQ(part.address, whole.address + kPage);
  EXPECT_EQ(second.Read(part), ReadFile(file_).Part(kPage, 2 * kPage));
}

TEST_F(ModernSharing, ARangeThatSticksOutOfALivingCopyIsRefused) {
  Peer first(daemon_.runtime_dir()), second(daemon_.runtime_dir());
  ASSERT_EQ(first.Map(file_, {.length = 2 * kPage, .offset = kPage}).error, 0);
  EXPECT_EQ(second.Map(file_, {.length = 2 * kPage, .offset = 0}).error, EINVAL);
  EXPECT_EQ(second.Map(file_, {.length = 2 * kPage, .offset = 2 * kPage}).error, EINVAL);
}

}  // namespace
}  // namespace mapbroker::testing
