// Mappings of memory-backed files through the broker: direct where they can be, ftruncate against mappings, System V
// segments, small objects.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/shm.h>

#include <cerrno>
#include <memory>
#include <string>
#include <vector>

#include "daemon/broker.h"
#include "daemon/nommu/refusal.h"

namespace mapbroker {
namespace {

using nommu::ErrnoOf;
using nommu::MappingKind;

constexpr std::uint64_t kPage = nommu::kPageSize;
constexpr std::uint64_t kPoolPages = 64;

class MemoryFileTest : public ::testing::TestWithParam<const nommu::Profile*> {
 protected:
  explicit MemoryFileTest(const Limits& limits = {})
      : memory_(kPoolPages * kPage),
        pages_(memory_, /*prefault=*/false),
        broker_(*GetParam(), pages_, memory_, limits) {
    for (const uid_t uid : {1000u, 1001u}) {
      const pid_t pid = static_cast<pid_t>(uid);
      sessions_.push_back(
          std::make_shared<session::Session>(uid, Credentials{pid, uid, uid}, false, broker_.OpenSpace(pid)));
    }
  }
  ~MemoryFileTest() override {
    for (const auto& session : sessions_) End(*session);
    for (const SegmentStat& stat : broker_.ListSegments()) {
      EXPECT_TRUE(broker_.ShmRemove(a(), stat.segment.id).ok());
    }
    for (const auto& file : broker_.ram_files().List("", "", 100)) {
      EXPECT_TRUE(broker_.ram_files().Unlink(file.name, Credentials{}).ok());
    }
    sessions_.clear();
    pages_.WaitUntilIdle();
    EXPECT_EQ(pages_.statistics().free, kPoolPages * kPage) << "memory has leaked";
    EXPECT_EQ(broker_.GetStatistics().map.regions, 0u);
  }

  session::Session& a() { return *sessions_[0]; }
  session::Session& b() { return *sessions_[1]; }
  void End(const session::Session& session) {
    while (!broker_.LeaveSpace(session.space(), session.peer().pid)) {
    }
  }
  int Open(session::Session& session, const std::string& name, int flags = O_RDWR | O_CREAT) {
    const auto fd = broker_.OpenFile(session, name, flags, 0666);
    EXPECT_TRUE(fd.ok()) << fd.status();
    return fd.ok() ? *fd : -1;
  }
  backing::RamFile& FileOf(session::Session& session, int fd) {
    return dynamic_cast<backing::RamFile&>(*session.File(fd));
  }
  absl::Status Truncate(session::Session& session, int fd, std::uint64_t size) {
    return broker_.Ftruncate(FileOf(session, fd), size);
  }
  int OpenSized(session::Session& session, const std::string& name, std::uint64_t pages) {
    const int fd = Open(session, name);
    EXPECT_TRUE(Truncate(session, fd, pages * kPage).ok());
    return fd;
  }
  // Whose pages do not adjoin.
  int OpenScattered(session::Session& session, const std::string& name, std::uint64_t pages) {
    const int fd = Open(session, name), spacer = Open(session, name + ".spacer");
    const std::vector<std::byte> page(kPage, std::byte{'s'});
    for (std::uint64_t i = 0; i < pages; ++i) {
      for (const int to : {fd, spacer}) EXPECT_TRUE(FileOf(session, to).node().Write(i * kPage, false, page).ok());
    }
    EXPECT_EQ(FileOf(session, fd).node().Stat().runs, pages);
    return fd;
  }
  absl::StatusOr<nommu::Grant> Map(session::Session& session, int fd, std::uint64_t first, std::uint64_t pages,
                                   int flags, std::uint32_t prot) {
    return broker_.Mmap(
        session,
        {.length = pages * kPage, .prot = prot, .flags = static_cast<std::uint32_t>(flags), .offset = first * kPage},
        fd);
  }
  absl::StatusOr<nommu::Grant> Shared(session::Session& session, int fd, std::uint64_t first, std::uint64_t pages) {
    return Map(session, fd, first, pages, MAP_SHARED, PROT_READ | PROT_WRITE);
  }
  absl::StatusOr<nommu::Grant> Private(session::Session& session, int fd, std::uint64_t first, std::uint64_t pages) {
    return Map(session, fd, first, pages, MAP_PRIVATE, PROT_READ);
  }

  std::vector<std::byte> memory_;
  shm::PagePool pages_;
  Broker broker_;
  std::vector<std::shared_ptr<session::Session>> sessions_;
};

INSTANTIATE_TEST_SUITE_P(Profiles, MemoryFileTest, ::testing::Values(&nommu::kClassic, &nommu::kModern),
                         [](const auto& info) { return info.param->name; });

TEST_P(MemoryFileTest, AContiguousFileIsMappedWhereItLies) {
  const int fd = OpenSized(a(), "ram:/f", 4), other = Open(b(), "ram:/f");
  const auto whole = Shared(a(), fd, 0, 4), part = Shared(b(), other, 2, 2), quiet = Private(b(), other, 1, 2);
  ASSERT_TRUE(whole.ok() && part.ok() && quiet.ok());
  EXPECT_EQ(whole->kind, MappingKind::kDirect);
  EXPECT_EQ(part->address, whole->address + 2 * kPage);
  EXPECT_EQ(quiet->address, whole->address + kPage);
  // S9: what is written through a mapping is what is read, and the other way round.
  memory_[part->address] = std::byte{'w'};
  std::byte read{};
  FileOf(a(), fd).node().Read(2 * kPage, std::span(&read, 1));
  EXPECT_EQ(read, std::byte{'w'});
  const std::byte written{'x'};
  ASSERT_TRUE(FileOf(b(), other).node().Write(0, false, std::span(&written, 1)).ok());
  EXPECT_EQ(memory_[whole->address], written);
}

TEST_P(MemoryFileTest, APrivateWritableMappingIsACopy) {
  const int fd = OpenSized(a(), "ram:/f", 2);
  const auto shared = Shared(a(), fd, 0, 2), own = Map(a(), fd, 0, 2, MAP_PRIVATE, PROT_READ | PROT_WRITE);
  ASSERT_TRUE(shared.ok() && own.ok());
  EXPECT_EQ(own->kind, MappingKind::kPrivateCopy);
  memory_[own->address] = std::byte{'x'};
  EXPECT_EQ(memory_[shared->address], std::byte{0});
}

TEST_P(MemoryFileTest, AScatteredFileIsCopiedForPrivateAndRefusedForShared) {
  const int fd = OpenScattered(a(), "ram:/f", 3);
  EXPECT_EQ(ErrnoOf(Shared(a(), fd, 0, 3).status()), ENODEV);
  const auto copy = Private(a(), fd, 0, 3), same = Private(b(), Open(b(), "ram:/f"), 0, 3);
  ASSERT_TRUE(copy.ok() && same.ok());
  EXPECT_EQ(copy->kind, MappingKind::kSharedCopy);
  EXPECT_EQ(same->address, copy->address);
  EXPECT_EQ(memory_[copy->address + kPage], std::byte{'s'});
  // One page of it is contiguous.
  EXPECT_EQ(Shared(a(), fd, 1, 1)->kind, MappingKind::kDirect);
}

TEST_P(MemoryFileTest, ACopyThatSticksOutOfAnotherIsTheProfilesChoice) {
  const int fd = OpenScattered(a(), "ram:/f", 4);
  ASSERT_TRUE(Private(a(), fd, 0, 3).ok());
  const auto longer = Private(a(), fd, 1, 3);
  if (GetParam() == &nommu::kClassic) {
    EXPECT_EQ(ErrnoOf(longer.status()), EINVAL);
  } else {
    EXPECT_TRUE(longer.ok());  // P3: the file could also be direct
  }
}

TEST_P(MemoryFileTest, ASharedMappingPastTheEndIsRefused) {
  const int fd = OpenSized(a(), "ram:/f", 2);
  EXPECT_EQ(ErrnoOf(Shared(a(), fd, 1, 2).status()), ENODEV);
  EXPECT_EQ(ErrnoOf(Shared(a(), fd, 2, 1).status()), ENODEV);
  EXPECT_EQ(ErrnoOf(Shared(a(), Open(a(), "ram:/empty"), 0, 1).status()), ENODEV);
}

TEST_P(MemoryFileTest, WhatASharedMappingUsesCannotBeCutOff) {
  const int fd = OpenSized(a(), "ram:/f", 4);
  const auto mapping = Shared(b(), Open(b(), "ram:/f"), 1, 2);
  ASSERT_TRUE(mapping.ok());
  for (const std::uint64_t size : {0ul, 1ul, 2 * kPage, 3 * kPage - 1}) {
    EXPECT_EQ(ErrnoOf(Truncate(a(), fd, size)), ETXTBSY) << size;
  }
  EXPECT_EQ(ErrnoOf(broker_.OpenFile(a(), "ram:/f", O_RDWR | O_TRUNC, 0).status()), ETXTBSY);
  EXPECT_EQ(FileOf(a(), fd).node().Size(), 4 * kPage);
  EXPECT_TRUE(Truncate(a(), fd, 3 * kPage).ok());
  ASSERT_TRUE(broker_.Munmap(b(), mapping->address, mapping->length).ok());
  EXPECT_TRUE(Truncate(a(), fd, 0).ok());
}

TEST_P(MemoryFileTest, APrivateMappingKeepsWhatIsCutOffAndNobodyElseGetsIt) {
  const int fd = OpenSized(a(), "ram:/f", 2);
  const auto old = Private(a(), fd, 0, 2);
  ASSERT_TRUE(old.ok());
  memory_[old->address + kPage] = std::byte{'o'};
  ASSERT_TRUE(Truncate(a(), fd, 0).ok());
  ASSERT_TRUE(Truncate(a(), fd, 2 * kPage).ok());
  const auto fresh = Private(b(), Open(b(), "ram:/f"), 0, 2);
  ASSERT_TRUE(fresh.ok());
  EXPECT_NE(fresh->address, old->address);
  EXPECT_EQ(memory_[fresh->address + kPage], std::byte{0});
  EXPECT_EQ(memory_[old->address + kPage], std::byte{'o'});
}

TEST_P(MemoryFileTest, AnUnlinkedFileLastsWhileItIsMapped) {
  const int fd = OpenSized(a(), "ram:/f", 2);
  const auto mapping = Shared(a(), fd, 0, 2);
  ASSERT_TRUE(broker_.ram_files().Unlink("ram:/f", a().peer()).ok());
  ASSERT_TRUE(a().CloseFile(fd).ok());
  pages_.WaitUntilIdle();
  EXPECT_EQ(pages_.statistics().free, (kPoolPages - 2) * kPage);
  memory_[mapping->address] = std::byte{'x'};
}

TEST_P(MemoryFileTest, ATracedProcessGetsACopyOfItsOwn) {
  const int fd = OpenSized(a(), "ram:/f", 2);
  ASSERT_TRUE(Private(a(), fd, 0, 2).ok());
  const auto file = std::static_pointer_cast<const nommu::File>(a().File(fd));
  nommu::MemoryMap map(*GetParam());
  const nommu::MapRequest request{.length = kPage, .prot = PROT_READ, .flags = MAP_PRIVATE, .traced = true};
  for (int i = 0; i < 2; ++i) {
    const auto reservation = map.Reserve(request, file);
    ASSERT_TRUE(reservation.ok());
    EXPECT_TRUE(reservation->created);
    EXPECT_EQ(reservation->region->kind, MappingKind::kPrivateCopy);
  }
}

TEST_P(MemoryFileTest, AShortPrivateRequestIsTheProfilesChoice) {
  const nommu::MapRequest request{.length = 100, .prot = PROT_READ | PROT_WRITE, .flags = MAP_PRIVATE | MAP_ANONYMOUS};
  const auto one = broker_.Mmap(a(), request, -1), two = broker_.Mmap(a(), request, -1);
  const auto other = broker_.Mmap(b(), request, -1);
  ASSERT_TRUE(one.ok() && two.ok() && other.ok());
  const bool small = GetParam()->has_small_objects;
  EXPECT_EQ(one->length, small ? 100 : kPage);
  EXPECT_EQ(one->address / kPage == two->address / kPage, small);
  EXPECT_NE(one->address / kPage, other->address / kPage);  // another user's
  // What was written is gone when the object is given out again.
  std::fill_n(memory_.begin() + static_cast<std::ptrdiff_t>(two->address), 100, std::byte{7});
  ASSERT_TRUE(broker_.Munmap(a(), two->address, two->length).ok());
  pages_.WaitUntilIdle();
  EXPECT_EQ(memory_[two->address], std::byte{0});
}

TEST_P(MemoryFileTest, AShortPrivateCopyHoldsTheFilesBytes) {
  const int fd = Open(a(), "ram:/f");
  ASSERT_TRUE(FileOf(a(), fd).node().Write(0, false, std::vector<std::byte>(150, std::byte{'f'})).ok());
  const auto copy = broker_.Mmap(a(), {.length = 200, .prot = PROT_READ | PROT_WRITE, .flags = MAP_PRIVATE}, fd);
  ASSERT_TRUE(copy.ok());
  EXPECT_EQ(memory_[copy->address + 149], std::byte{'f'});
  EXPECT_EQ(memory_[copy->address + 150], std::byte{0});
  EXPECT_EQ(memory_[copy->address + 199], std::byte{0});
}

TEST_P(MemoryFileTest, SegmentsAreFoundByKeyAndPermission) {
  const auto id = broker_.Shmget(a(), 0x77, 5000, IPC_CREAT | 0600);
  ASSERT_TRUE(id.ok());
  EXPECT_EQ(*broker_.Shmget(a(), 0x77, 100, 0), *id);
  EXPECT_EQ(ErrnoOf(broker_.Shmget(a(), 0x77, 5001, 0).status()), EINVAL);
  EXPECT_EQ(ErrnoOf(broker_.Shmget(a(), 0x77, 100, IPC_CREAT | IPC_EXCL).status()), EEXIST);
  EXPECT_EQ(ErrnoOf(broker_.Shmget(a(), 0x78, 100, 0).status()), ENOENT);
  EXPECT_EQ(ErrnoOf(broker_.Shmget(b(), 0x77, 100, 0400).status()), EACCES);
  EXPECT_EQ(ErrnoOf(broker_.Shmat(b(), *id, 0, 0).status()), EACCES);
  EXPECT_EQ(ErrnoOf(broker_.ShmStat(b(), *id).status()), EACCES);
  EXPECT_EQ(ErrnoOf(broker_.ShmRemove(b(), *id)), EPERM);
  ASSERT_TRUE(broker_.ShmSet(a(), *id, 1000, 1000, 0604).ok());
  EXPECT_TRUE(broker_.Shmat(b(), *id, 0, SHM_RDONLY).ok());
  EXPECT_EQ(ErrnoOf(broker_.Shmat(b(), *id, 0, 0).status()), EACCES);
}

TEST_P(MemoryFileTest, ASegmentGoesWithItsLastDetach) {
  const int id = *broker_.Shmget(a(), 0x77, 2 * kPage, IPC_CREAT | 0666);
  const auto one = broker_.Shmat(a(), id, 0, 0), two = broker_.Shmat(b(), id, 0, 0);
  ASSERT_TRUE(one.ok() && two.ok());
  EXPECT_EQ(one->grant.address, two->grant.address);
  EXPECT_EQ(broker_.ShmStat(a(), id)->nattch, 2u);
  ASSERT_TRUE(broker_.ShmRemove(a(), id).ok());
  EXPECT_EQ(ErrnoOf(broker_.Shmget(b(), 0x77, 1, 0).status()), ENOENT);
  EXPECT_TRUE(broker_.ShmStat(a(), id)->segment.marked_destroyed);
  ASSERT_TRUE(broker_.Shmdt(a(), one->grant.address).ok());
  EXPECT_EQ(ErrnoOf(broker_.Shmdt(a(), one->grant.address)), EINVAL);
  EXPECT_EQ(broker_.ShmStat(b(), id)->nattch, 1u);
  End(b());  // its process ends
  EXPECT_EQ(ErrnoOf(broker_.ShmStat(a(), id).status()), EINVAL);
  pages_.WaitUntilIdle();
  EXPECT_EQ(pages_.statistics().free, kPoolPages * kPage);
}

class LimitsTest : public MemoryFileTest {
 protected:
  LimitsTest()
      : MemoryFileTest(Limits{
            .map = {.max_map_count = 2}, .sysv = {.shmmax = 8192, .shmall = 3, .shmmni = 2}, .nr_trim_pages = 0}) {}
};
INSTANTIATE_TEST_SUITE_P(Profiles, LimitsTest, ::testing::Values(&nommu::kClassic, &nommu::kModern),
                         [](const auto& info) { return info.param->name; });

TEST_P(LimitsTest, OfSegmentsHold) {
  EXPECT_EQ(ErrnoOf(broker_.Shmget(a(), IPC_PRIVATE, 8193, 0600).status()), EINVAL);
  ASSERT_TRUE(broker_.Shmget(a(), IPC_PRIVATE, 8192, 0600).ok());
  EXPECT_EQ(ErrnoOf(broker_.Shmget(a(), IPC_PRIVATE, 8192, 0600).status()), ENOSPC);  // shmall
  const auto last = broker_.Shmget(a(), IPC_PRIVATE, 1, 0600);
  ASSERT_TRUE(last.ok());
  ASSERT_TRUE(broker_.ShmRemove(a(), *last).ok());
  ASSERT_TRUE(broker_.Shmget(a(), IPC_PRIVATE, 1, 0600).ok());
  EXPECT_EQ(ErrnoOf(broker_.Shmget(a(), IPC_PRIVATE, 1, 0600).status()), ENOSPC);  // shmmni
}

TEST_P(LimitsTest, UntrimmedRunsArePowersOfTwo) {
  const nommu::MapRequest request{.length = 5 * kPage, .prot = PROT_READ, .flags = MAP_PRIVATE | MAP_ANONYMOUS};
  const auto mapping = broker_.Mmap(a(), request, -1);
  ASSERT_TRUE(mapping.ok());
  EXPECT_EQ(mapping->length, 5 * kPage);
  EXPECT_EQ(pages_.statistics().free, (kPoolPages - 8) * kPage);
  // P6: into the slack only where the rules are classic.
  const auto grown =
      broker_.Mremap(a(), {.address = mapping->address, .old_length = 5 * kPage, .new_length = 8 * kPage});
  EXPECT_EQ(ErrnoOf(grown.status()), GetParam() == &nommu::kClassic ? 0 : ENOMEM);
}

TEST_P(LimitsTest, WhatIsLeftOfAMappingGrowsIntoNoSlackUnderModern) {
  if (GetParam()->unmaps_whole_mappings_only) return;  // P4
  const nommu::MapRequest request{.length = 5 * kPage, .prot = PROT_READ, .flags = MAP_PRIVATE | MAP_ANONYMOUS};
  const auto mapping = broker_.Mmap(a(), request, -1);
  ASSERT_TRUE(mapping.ok());
  ASSERT_TRUE(broker_.Munmap(a(), mapping->address, kPage).ok());
  const auto grown =
      broker_.Mremap(a(), {.address = mapping->address + kPage, .old_length = 4 * kPage, .new_length = 5 * kPage});
  EXPECT_EQ(ErrnoOf(grown.status()), ENOMEM);  // P6
}

TEST_P(LimitsTest, ASpaceWithManyMappingsSplitsNone) {
  if (GetParam()->unmaps_whole_mappings_only) return;  // P4: there is nothing to split
  const nommu::MapRequest request{.length = 4 * kPage, .prot = PROT_READ, .flags = MAP_PRIVATE | MAP_ANONYMOUS};
  const auto one = broker_.Mmap(a(), request, -1), two = broker_.Mmap(a(), request, -1);
  ASSERT_TRUE(one.ok() && two.ok());
  EXPECT_EQ(ErrnoOf(broker_.Munmap(a(), one->address + kPage, kPage)), ENOMEM);
  EXPECT_TRUE(broker_.Munmap(a(), one->address, kPage).ok());
}

}  // namespace
}  // namespace mapbroker
