// What users have and may have: that nothing is forgotten and nothing is counted that is not there.
#include "daemon/account.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/shm.h>

#include <cerrno>
#include <chrono>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "daemon/broker.h"
#include "daemon/nommu/refusal.h"

namespace mapbroker {
namespace {

using nommu::ErrnoOf;

constexpr std::uint64_t kPage = nommu::kPageSize;
constexpr std::uint64_t kPoolPages = 256;
constexpr uid_t kAlice = 1000, kBob = 1001;

UserLimits Limited(Resource resource, std::uint64_t most) {
  UserLimits limits;
  limits.each[static_cast<std::size_t>(resource)] = most;
  return limits;
}

TEST(Account, GivesUpToTheLimitAndSaysWhichItIsWhatIsUsedAndTheKey) {
  Accounts accounts(Limited(Resource::kSessions, 3));
  Account& alice = accounts.Of(kAlice);
  EXPECT_TRUE(alice.Take(Resource::kSessions, 2).ok());
  EXPECT_TRUE(alice.Take(Resource::kSessions, 1).ok());
  const absl::Status refused = alice.Take(Resource::kSessions, 1);
  EXPECT_EQ(ErrnoOf(refused), EAGAIN);
  const std::string sentence(refused.message());
  for (const char* part : {"user 1000", "3 sessions", "has 3", "limits.sessions"}) {
    EXPECT_NE(sentence.find(part), std::string::npos) << sentence;
  }
  EXPECT_EQ(alice.used(Resource::kSessions), 3u);
  alice.Give(Resource::kSessions, 1);
  EXPECT_TRUE(alice.Take(Resource::kSessions, 1).ok());
  EXPECT_TRUE(accounts.Of(kBob).Take(Resource::kSessions, 3).ok()) << "a user pays for another";
}

TEST(Account, RefusesWithTheErrnoThatTheKernelHasForTheLike) {
  const std::pair<Resource, int> kErrors[] = {{Resource::kBytes, ENOMEM},       {Resource::kMappings, ENOMEM},
                                              {Resource::kSessions, EAGAIN},    {Resource::kDescriptors, EMFILE},
                                              {Resource::kConnections, EAGAIN}, {Resource::kCalls, EAGAIN}};
  for (const auto& [resource, error] : kErrors) {
    Accounts accounts(Limited(resource, 1));
    EXPECT_EQ(ErrnoOf(accounts.Of(kAlice).Take(resource, 2)), error);
    EXPECT_EQ(ErrnoOf(accounts.Of(kAlice).Take(resource, UINT64_MAX)), error);
    EXPECT_EQ(accounts.Of(kAlice).used(resource), 0u);
  }
}

TEST(Account, RootAndTheDaemonsOwnUserHaveNoLimitsUnlessTheyAreNamed) {
  UserLimits limits = Limited(Resource::kMappings, 1);
  limits.own_user = 42;
  EXPECT_EQ(limits.For(0, Resource::kMappings), 0u);
  EXPECT_EQ(limits.For(42, Resource::kMappings), 0u);
  EXPECT_EQ(limits.For(kAlice, Resource::kMappings), 1u);
  limits.of[0][static_cast<std::size_t>(Resource::kMappings)] = 5;
  limits.of[kAlice][static_cast<std::size_t>(Resource::kMappings)] = 0;
  EXPECT_EQ(limits.For(0, Resource::kMappings), 5u);
  EXPECT_EQ(limits.For(0, Resource::kSessions), 0u);
  EXPECT_EQ(limits.For(kAlice, Resource::kMappings), 0u);
  EXPECT_GT(limits.For(kAlice, Resource::kSessions), 0u) << "what is not set has a bound";
}

TEST(Account, ALowerLimitTakesNothingAwayAndGivesNothingMore) {
  Accounts accounts;
  Account& alice = accounts.Of(kAlice);
  EXPECT_TRUE(alice.Take(Resource::kMappings, 10).ok());
  accounts.SetLimits(Limited(Resource::kMappings, 5));
  EXPECT_EQ(ErrnoOf(alice.Take(Resource::kMappings, 1)), ENOMEM);
  EXPECT_EQ(alice.used(Resource::kMappings), 10u);
  alice.Give(Resource::kMappings, 6);
  EXPECT_TRUE(alice.Take(Resource::kMappings, 1).ok());
  EXPECT_EQ(ErrnoOf(alice.Take(Resource::kMappings, 1)), ENOMEM);
}

TEST(Account, ManyThreadsNeverTakeMoreThanThereIsOrLoseAny) {
  Accounts accounts(Limited(Resource::kBytes, 100));
  Account& alice = accounts.Of(kAlice);
  std::atomic<bool> beyond = false;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int j = 0; j < 20'000; ++j) {
        if (!alice.Take(Resource::kBytes, 30).ok()) continue;
        if (alice.used(Resource::kBytes) > 100) beyond = true;
        alice.Give(Resource::kBytes, 30);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_FALSE(beyond);
  EXPECT_EQ(alice.used(Resource::kBytes), 0u);
}

TEST(Account, RequestsMayComeASecondsWorthAtOnceAndThenOneByOne) {
  Accounts accounts(Limited(Resource::kRequests, 10));
  Account& alice = accounts.Of(kAlice);
  Account::Time now{std::chrono::hours(1)};
  for (int i = 0; i < 10; ++i) EXPECT_TRUE(alice.TakeRequestAt(now, false).ok()) << i;
  EXPECT_EQ(ErrnoOf(alice.TakeRequestAt(now, false)), EAGAIN);
  now += std::chrono::milliseconds(100);
  EXPECT_TRUE(alice.TakeRequestAt(now, false).ok());
  EXPECT_EQ(ErrnoOf(alice.TakeRequestAt(now, false)), EAGAIN);
  now += std::chrono::seconds(100);
  int taken = 0;
  while (alice.TakeRequestAt(now, false).ok()) ++taken;
  EXPECT_EQ(taken, 10) << "what was not used does not add up";
}

TEST(Account, WhatGivesBackIsNeverRefusedAndIsCountedAllTheSame) {
  Accounts accounts(Limited(Resource::kRequests, 10));
  Account& alice = accounts.Of(kAlice);
  const Account::Time now{std::chrono::hours(1)};
  for (int i = 0; i < 1000; ++i) EXPECT_TRUE(alice.TakeRequestAt(now, true).ok());
  EXPECT_EQ(ErrnoOf(alice.TakeRequestAt(now, false)), EAGAIN);
  EXPECT_TRUE(alice.TakeRequestAt(now + std::chrono::seconds(1), false).ok()) << "a debt without bound";
}

TEST(Account, AChargeIsGivenBackOnceEvenAfterTheTableHasGone) {
  Charge left;
  {
    Accounts accounts;
    Account& alice = accounts.Of(kAlice);
    {
      Charge charge = *Charge::Take(&alice, Resource::kCalls, 2);
      Charge moved = std::move(charge);
      EXPECT_EQ(alice.used(Resource::kCalls), 2u);
      Charge other = *Charge::Take(&alice, Resource::kCalls, 1);
      moved = std::move(other);
      EXPECT_EQ(alice.used(Resource::kCalls), 1u);
    }
    EXPECT_EQ(alice.used(Resource::kCalls), 0u);
    left = Charge::Add(&alice, Resource::kCalls, 1);
  }
  left.Reset();
}

// Mappable, and cannot be read.
class UnreadableFile final : public backing::Backing {
 public:
  UnreadableFile() {
    id = {7, 1};
    capabilities = nommu::kMapCopy;
    readable = true;
  }
  absl::StatusOr<std::uint64_t> Size() const override { return kPoolPages * kPage; }
  absl::StatusOr<std::size_t> Read(std::uint64_t, std::span<std::byte>) const override {
    return nommu::Refuse(EIO, "", "told to fail");
  }
  std::string Path() const override { return "/unreadable"; }
};

// What the broker charges. Every test ends with all given back.
class Charged : public ::testing::TestWithParam<const nommu::Profile*> {
 protected:
  Charged() : memory_(kPoolPages * kPage), pages_(memory_, /*prefault=*/false) { Limit({}); }
  ~Charged() override {
    for (auto& session : sessions_) End(*session);
    sessions_.clear();
    for (const SegmentStat& stat : broker_->ListSegments()) {
      EXPECT_TRUE(broker_->ShmRemove(session::Session(1, Credentials{1, 0, 0}, false, 0), stat.segment.id).ok());
    }
    for (const auto& file : broker_->ram_files().List("", "", 100)) {
      EXPECT_TRUE(broker_->ram_files().Unlink(file.name, Credentials{}).ok());
    }
    for (const auto& device : broker_->devices().List("")) {
      EXPECT_TRUE(broker_->devices().Remove(device.stat.name, Credentials{}).ok());
    }
    for (const uid_t user : {uid_t{0}, kAlice, kBob}) {
      // Files are closed elsewhere, and soon.
      const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
      while (Used(user, Resource::kDescriptors) > 0 && std::chrono::steady_clock::now() < deadline) {
        std::this_thread::yield();
      }
      for (std::size_t i = 0; i < kResources; ++i) {
        EXPECT_EQ(Used(user, static_cast<Resource>(i)), 0u)
            << "user " << user << " has " << kResourceKeys[i] << " left";
      }
    }
  }

  void Limit(const UserLimits& users) {
    Limits limits;
    limits.users = users;
    broker_.emplace(*GetParam(), pages_, memory_, limits);
  }
  session::Session& NewSession(uid_t user, nommu::SpaceId space = 0) {
    const pid_t pid = static_cast<pid_t>(sessions_.size()) + 10;
    Account* const account = &broker_->accounts().Of(user);
    if (space == 0) {
      space = broker_->OpenSpace(pid, account);
    } else {
      broker_->JoinSpace(space, pid, account);
    }
    sessions_.push_back(std::make_shared<session::Session>(sessions_.size() + 1, Credentials{pid, user, user}, false,
                                                           space, 0, account));
    return *sessions_.back();
  }
  void End(const session::Session& session) {
    while (!broker_->LeaveSpace(session.space(), session.peer().pid)) {
    }
  }
  absl::StatusOr<nommu::Grant> Map(session::Session& session, std::uint64_t length, int fd = -1,
                                   std::uint32_t prot = PROT_READ | PROT_WRITE, std::uint64_t offset = 0,
                                   std::uint32_t flags = MAP_PRIVATE) {
    return broker_->Mmap(
        session, {.length = length, .prot = prot, .flags = flags | (fd < 0 ? MAP_ANONYMOUS : 0u), .offset = offset},
        fd);
  }
  std::uint64_t Used(uid_t user, Resource resource) { return broker_->accounts().Of(user).used(resource); }

  std::vector<std::byte> memory_;
  shm::PagePool pages_;
  std::optional<Broker> broker_;
  std::vector<std::shared_ptr<session::Session>> sessions_;
};

TEST_P(Charged, MemoryIsRefusedPastTheLimitAndThereAgainWhenSomeIsUnmapped) {
  Limit(Limited(Resource::kBytes, 10 * kPage));
  session::Session& alice = NewSession(kAlice);
  session::Session& second = NewSession(kAlice);
  session::Session& bob = NewSession(kBob);
  const auto first = Map(alice, 6 * kPage);
  ASSERT_TRUE(first.ok()) << first.status();
  const std::uint64_t free = broker_->GetStatistics().pool.free;
  const auto refused = Map(second, 5 * kPage);
  EXPECT_EQ(ErrnoOf(refused.status()), ENOMEM);
  EXPECT_NE(refused.status().message().find("limits.bytes"), absl::string_view::npos) << refused.status();
  EXPECT_EQ(broker_->GetStatistics().pool.free, free);
  EXPECT_EQ(broker_->GetStatistics().map.regions, 1u);
  EXPECT_TRUE(Map(second, 4 * kPage).ok());
  EXPECT_TRUE(Map(bob, 10 * kPage).ok());
  EXPECT_TRUE(broker_->Munmap(alice, first->address, first->length).ok());
  EXPECT_TRUE(Map(second, 6 * kPage).ok());
}

TEST_P(Charged, MappingsAreCountedOverAllOfAUsersProcesses) {
  Limit(Limited(Resource::kMappings, 3));
  session::Session& one = NewSession(kAlice);
  session::Session& two = NewSession(kAlice);
  ASSERT_TRUE(Map(one, kPage).ok());
  ASSERT_TRUE(Map(two, kPage).ok());
  const auto large = Map(two, 3 * kPage);
  ASSERT_TRUE(large.ok());
  EXPECT_EQ(ErrnoOf(Map(one, kPage).status()), ENOMEM);
  if (!GetParam()->unmaps_whole_mappings_only) {
    EXPECT_EQ(ErrnoOf(broker_->Munmap(two, large->address + kPage, kPage)), ENOMEM)
        << "a mapping too many by splitting";
    EXPECT_EQ(Used(kAlice, Resource::kBytes), 5 * kPage);
    EXPECT_TRUE(broker_->Munmap(two, large->address, kPage).ok());
    EXPECT_EQ(Used(kAlice, Resource::kBytes), 4 * kPage);
  }
  End(two);
  EXPECT_EQ(Used(kAlice, Resource::kMappings), 1u);
}

TEST_P(Charged, WhoKeepsAPieceOfALargeCopyPaysForAllOfIt) {
  session::Session& alice = NewSession(kAlice);
  const int fd = *alice.AddFile(shm::UniqueFd(open("/proc/self/exe", O_RDONLY | O_CLOEXEC)));
  const auto whole = Map(alice, 64 * kPage, fd, PROT_READ);
  ASSERT_TRUE(whole.ok()) << whole.status();
  const auto piece = Map(alice, kPage, fd, PROT_READ);
  if (!piece.ok()) return;  // classic shares equal ranges alone
  ASSERT_TRUE(broker_->Munmap(alice, whole->address, whole->length).ok());
  EXPECT_EQ(broker_->GetStatistics().map.region_pages, 64u);
  EXPECT_EQ(Used(kAlice, Resource::kBytes), 64 * kPage) << "64 pages are held for the price of one";
}

TEST_P(Charged, WhatDoesNotFitIntoThePoolCostsNothing) {
  session::Session& alice = NewSession(kAlice);
  EXPECT_EQ(ErrnoOf(Map(alice, 2 * kPoolPages * kPage).status()), ENOMEM);
  EXPECT_EQ(Used(kAlice, Resource::kBytes), 0u);
  EXPECT_EQ(Used(kAlice, Resource::kMappings), 0u);
}

TEST_P(Charged, AFileThatCannotBeReadCostsNothing) {
  session::Session& alice = NewSession(kAlice);
  const int fd = *alice.AddFile(std::make_shared<UnreadableFile>());
  EXPECT_EQ(ErrnoOf(Map(alice, kPage, fd, PROT_READ).status()), EIO);
  EXPECT_EQ(Used(kAlice, Resource::kBytes), 0u);
  EXPECT_EQ(Used(kAlice, Resource::kMappings), 0u);
}

TEST_P(Charged, WhoOpenedAnAddressSpacePaysAndTheLastWhoLeavesGivesBack) {
  session::Session& alice = NewSession(kAlice);
  session::Session& bob = NewSession(kBob, alice.space());
  ASSERT_TRUE(Map(bob, 4 * kPage).ok());
  EXPECT_EQ(Used(kAlice, Resource::kBytes), 4 * kPage);
  EXPECT_EQ(Used(kBob, Resource::kBytes), 0u);
  End(alice);
  EXPECT_EQ(Used(kAlice, Resource::kBytes), 4 * kPage);
  End(bob);
  EXPECT_EQ(Used(kAlice, Resource::kBytes), 0u);
}

TEST_P(Charged, RamFilesCostTheirPagesAndOneForBeingThere) {
  Limit(Limited(Resource::kBytes, 8 * kPage));
  session::Session& alice = NewSession(kAlice);
  const int fd = *broker_->OpenFile(alice, "ram:/a", O_RDWR | O_CREAT, 0600);
  EXPECT_EQ(Used(kAlice, Resource::kBytes), kPage);
  const auto file = alice.File(fd);
  const std::vector<std::byte> bytes(2 * kPage, std::byte{1});
  ASSERT_TRUE(broker_->Ftruncate(*file, 3 * kPage).ok());
  EXPECT_EQ(Used(kAlice, Resource::kBytes), 4 * kPage);
  ASSERT_TRUE(file->Write(10 * kPage, bytes).ok());  // after a hole, which is free
  EXPECT_EQ(Used(kAlice, Resource::kBytes), 6 * kPage);
  ASSERT_TRUE(file->Write(10 * kPage, bytes).ok());  // again
  EXPECT_EQ(Used(kAlice, Resource::kBytes), 6 * kPage);
  const absl::Status refused = file->Write(20 * kPage, std::vector<std::byte>(3 * kPage));
  EXPECT_EQ(ErrnoOf(refused), ENOMEM);
  EXPECT_EQ(*file->Size(), 12 * kPage) << "a refused write changed the file";
  EXPECT_EQ(Used(kAlice, Resource::kBytes), 6 * kPage);
  ASSERT_TRUE(broker_->Ftruncate(*file, kPage + 1).ok());
  EXPECT_EQ(Used(kAlice, Resource::kBytes), 3 * kPage);
  ASSERT_TRUE(broker_->UnlinkFile("ram:/a", alice.peer()).ok());
  EXPECT_EQ(Used(kAlice, Resource::kBytes), 3 * kPage) << "it is still open";
}

TEST_P(Charged, EmptyRamFilesAndDevicesWithoutMemoryAreNotFree) {
  Limit(Limited(Resource::kBytes, 8 * kPage));
  session::Session& alice = NewSession(kAlice);
  int made = 0;
  while (made < 100 && broker_->OpenFile(alice, "ram:/" + std::to_string(made), O_RDWR | O_CREAT, 0600).ok()) ++made;
  EXPECT_EQ(made, 8);
  EXPECT_EQ(ErrnoOf(broker_->devices().Create(
                {.name = "dev:/null", .kind = "null", .options = {}, .owner = alice.peer(), .contents = nullptr})),
            ENOMEM);
}

TEST_P(Charged, SegmentsAndDevicesCostTheirMemory) {
  Limit(Limited(Resource::kBytes, 8 * kPage));
  session::Session& alice = NewSession(kAlice);
  const auto id = broker_->Shmget(alice, IPC_PRIVATE, 3 * kPage, 0600);
  ASSERT_TRUE(id.ok()) << id.status();
  EXPECT_EQ(Used(kAlice, Resource::kBytes), 4 * kPage);
  EXPECT_EQ(ErrnoOf(broker_->Shmget(alice, IPC_PRIVATE, 4 * kPage, 0600).status()), ENOMEM);
  EXPECT_EQ(Used(kAlice, Resource::kBytes), 4 * kPage);
  ASSERT_TRUE(broker_->ShmRemove(alice, *id).ok());
  EXPECT_EQ(Used(kAlice, Resource::kBytes), 0u);
  const auto make = [&](const std::string& size) {
    return broker_->devices().Create({.name = "dev:/disk",
                                      .kind = "ramdisk",
                                      .options = {{"size", size}},
                                      .owner = alice.peer(),
                                      .contents = nullptr});
  };
  EXPECT_EQ(ErrnoOf(make("64K")), ENOMEM);
  EXPECT_EQ(Used(kAlice, Resource::kBytes), 0u);
  ASSERT_TRUE(make("16K").ok());
  EXPECT_EQ(Used(kAlice, Resource::kBytes), 5 * kPage);
}

TEST_P(Charged, DescriptorsCountUntilTheyAreReallyClosed) {
  Limit(Limited(Resource::kDescriptors, 2));
  session::Session& alice = NewSession(kAlice);
  session::Session& second = NewSession(kAlice);
  const auto open_null = [] { return shm::UniqueFd(open("/proc/self/exe", O_RDONLY | O_CLOEXEC)); };
  const int fd = *alice.AddFile(open_null());
  ASSERT_TRUE(second.AddFile(open_null()).ok());
  EXPECT_EQ(ErrnoOf(second.AddFile(open_null()).status()), EMFILE);
  EXPECT_EQ(ErrnoOf(broker_->OpenFile(alice, "ram:/a", O_RDWR | O_CREAT, 0600).status()), EMFILE);
  const auto mapping = Map(alice, kPage, fd, PROT_READ);
  ASSERT_TRUE(mapping.ok()) << mapping.status();
  ASSERT_TRUE(alice.CloseFile(fd).ok());
  EXPECT_EQ(Used(kAlice, Resource::kDescriptors), 2u) << "the mapping keeps the file open";
  End(alice);
  while (Used(kAlice, Resource::kDescriptors) > 1) std::this_thread::yield();
  sessions_.clear();
  while (Used(kAlice, Resource::kDescriptors) > 0) std::this_thread::yield();
}

// Whatever is done in whatever order, the account says what the listing does.
TEST_P(Charged, TheAccountAgreesWithTheListingAfterAnySequenceOfCalls) {
  UserLimits limits = Limited(Resource::kMappings, 40);
  limits.each[static_cast<std::size_t>(Resource::kBytes)] = 200 * kPage;
  Limit(limits);
  std::mt19937 random(18);
  const auto below = [&](std::uint64_t most) { return random() % most; };
  int refused = 0;
  for (int round = 0; round < 20; ++round) {
    std::vector<session::Session*> users;
    for (int i = 0; i < 3; ++i) users.push_back(&NewSession(kAlice));
    std::vector<std::pair<session::Session*, nommu::Grant>> mapped;
    for (int step = 0; step < 100; ++step) {
      session::Session& session = *users[below(users.size())];
      const std::uint64_t action = mapped.empty() ? 0 : below(4);
      if (action <= 1) {
        const std::uint64_t length = below(2) == 0 ? 1 + below(kPage) : (1 + below(20)) * kPage;
        const auto grant = Map(session, length);
        if (grant.ok()) mapped.emplace_back(&session, *grant);
        refused += grant.ok() ? 0 : 1;
      } else {
        const std::size_t which = below(mapped.size());
        auto& [owner, grant] = mapped[which];
        if (action == 2) {
          const std::uint64_t at = below(1 + grant.length / kPage) * kPage;
          const bool part = at < grant.length && below(2) == 0;
          const absl::Status status = part ? broker_->Munmap(*owner, grant.address + at, kPage)
                                           : broker_->Munmap(*owner, grant.address, grant.length);
          if (status.ok()) mapped.erase(mapped.begin() + static_cast<std::ptrdiff_t>(which));
        } else {
          const auto length = broker_->Mremap(
              *owner, {.address = grant.address, .old_length = grant.length, .new_length = (1 + below(20)) * kPage});
          if (length.ok()) grant.length = *length;
        }
      }
      ASSERT_EQ(Used(kAlice, Resource::kMappings), broker_->GetStatistics().map.mappings);
      ASSERT_LE(Used(kAlice, Resource::kMappings), 40u);
    }
    std::uint64_t held = 0;
    nommu::MemoryMap::Cursor cursor;
    for (auto rows = *broker_->List(0, cursor); !rows.empty(); rows = *broker_->List(0, cursor)) {
      for (const ListedMapping& listed : rows) held += listed.row.end - listed.row.start;
    }
    EXPECT_GE(Used(kAlice, Resource::kBytes), held);  // a small object has up to half as much again
    for (session::Session* session : users) End(*session);
    ASSERT_EQ(Used(kAlice, Resource::kBytes), 0u) << "in round " << round;
    ASSERT_EQ(Used(kAlice, Resource::kMappings), 0u);
    sessions_.clear();
  }
  EXPECT_GT(refused, 0) << "no limit was ever reached";
}

INSTANTIATE_TEST_SUITE_P(Profiles, Charged, ::testing::Values(&nommu::kClassic, &nommu::kModern),
                         [](const auto& tested) { return std::string(tested.param->name); });

}  // namespace
}  // namespace mapbroker
